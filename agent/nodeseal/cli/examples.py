"""Examples for every command: what stands at the end of its --help. A test parses each of them."""

from __future__ import annotations

Example = tuple[str, str]
"""(a command line, what it is for)"""

EXAMPLES: dict[str, tuple[Example, ...]] = {
    "": (
        ("nodeseal lab up", "two nodes and four pods on this machine, to try it"),
        ("nodeseal check", "what this machine has of what a node needs"),
        ("nodeseal status", "what is enrolled, or why not"),
        ("nodeseal help lab exec", "the help of a command"),
    ),
    "agent": (("nodeseal agent --config /etc/nodeseal/agent.yaml", "what the node's service runs"),),
    "ca": (
        ("nodeseal ca init /etc/nodeseal/ca", "make a CA"),
        ("nodeseal ca init ca --trust-domain prod.example.com", "one for another trust domain, in ./ca"),
    ),
    "ca backup": (("nodeseal ca backup /backup/nodeseal-ca", "while the service runs; keep it secret"),),
    "ca export": (
        ("nodeseal ca export > issued.jsonl", "all that is known"),
        ("nodeseal ca export --format csv > issued.csv", "for a table"),
    ),
    "ca init": (
        ("nodeseal ca init /etc/nodeseal/ca", "a CA for example.org"),
        ("nodeseal ca init /etc/nodeseal/ca --trust-domain prod.example.com", "one for another trust domain"),
        ("nodeseal ca init /etc/nodeseal/ca --key-type p384", "one with keys of another kind"),
    ),
    "ca issued": (
        ("nodeseal ca issued --node node1", "what a node has got"),
        ("nodeseal ca issued --node node1 --valid -o json", "what of that is good still"),
        ("nodeseal ca issued --identity spiffe://example.org/ns/default/sa/web", "who has got an identity"),
        ("nodeseal ca issued --serial 4f2a", "whose serial number this is"),
    ),
    "ca key": (("nodeseal ca key show", "by what agents know the service"),),
    "ca key next": (("nodeseal ca key next", "before it is used"),),
    "ca key show": (
        ("nodeseal ca key show", "by what agents know the service"),
        ("nodeseal ca key show --certificates", "for agents that have a file as `anchor`"),
    ),
    "ca key switch": (
        ("nodeseal ca key switch", "when every agent knows the next key"),
        ("nodeseal ca key switch --back", "when one does not"),
    ),
    "ca renew": (
        ("nodeseal ca renew /etc/nodeseal/ca", "with root.key in the directory"),
        ("nodeseal ca renew /etc/nodeseal/ca --certificate next.pem", "with what was signed elsewhere"),
    ),
    "ca request": (("nodeseal ca request /etc/nodeseal/ca next.csr", "to be signed where the root's key is"),),
    "ca serve": (
        ("nodeseal ca serve", "with /etc/nodeseal/ca.yaml"),
        ("nodeseal ca serve --config ca.yaml", "with another configuration"),
    ),
    "ca show": (
        ("nodeseal ca show /etc/nodeseal/ca", "how long it is valid, and what is wrong"),
        ("nodeseal ca show /etc/nodeseal/ca -o json", "the same for a script"),
    ),
    "ca sign": (("nodeseal ca sign /media/root next.csr next.pem", "on the machine with the root's key"),),
    "ca status": (
        ("nodeseal ca status", "on the service's machine"),
        ("nodeseal ca status https://127.0.0.1:15019", "and one that stands by elsewhere"),
        ("nodeseal ca status --agent /etc/nodeseal/agent.yaml", "on a node"),
    ),
    "ca token": (("nodeseal ca token create --node node1", "so that node1 can join"),),
    "ca token create": (
        ("nodeseal ca token create --node node1", "usable for an hour"),
        ("nodeseal ca token create --node node1 --ttl 10m -o json", "for a script that sets up nodes"),
    ),
    "ca token list": (("nodeseal ca token list", "and what became of each"),),
    "ca token revoke": (
        ("nodeseal ca token revoke 4f2a81c09d3e", "one that was lost"),
        ("nodeseal ca token revoke --all", "all that can still be used, as after a restore"),
    ),
    "check": (
        ("nodeseal check", "with the defaults"),
        ("nodeseal check --config /etc/nodeseal/agent.yaml", "with a node's own settings, before it starts"),
        ("nodeseal check -o json", "for a script"),
    ),
    "cleanup": (
        ("nodeseal cleanup", "the node of this network namespace"),
        ("nodeseal cleanup --run-dir /run/nodeseal", "the node of this run directory"),
        ("nodeseal cleanup --all", "every node of this machine, those of others too"),
    ),
    "completion": (
        ("nodeseal completion bash > /etc/bash_completion.d/nodeseal", "for everybody"),
        ("nodeseal completion bash > ~/.local/share/bash-completion/completions/nodeseal", "for yourself"),
    ),
    "connections": (
        ("nodeseal connections", "those of now, and those closed in the last minute"),
        ("nodeseal connections --live", "without the closed ones"),
        ("nodeseal connections --workload 'shop/*'", "of one namespace"),
        ("nodeseal connections | grep 'no:'", "what is not under mutual TLS, and why"),
        ("nodeseal connections --live --anchor 9c05d9fe", "by that trust anchor"),
        ("nodeseal connections --tls", "with key exchange, suite and signature"),
        ("nodeseal connections -o json", "with TLS version, cipher suite and endpoint"),
    ),
    "help": (
        ("nodeseal help", "all commands"),
        ("nodeseal help lab up", "one of them"),
    ),
    "install": (
        ("nodeseal install | kubectl apply -f -", "with the defaults"),
        ("nodeseal install --image registry.example.com/nodeseal:0.1.0", "with that image"),
        ("nodeseal install -f values.yaml --set image.pullPolicy=Always", "with other values"),
    ),
    "lab": (
        ("nodeseal lab up", "make one"),
        ("nodeseal lab exec shipper -- curl -sS http://pipeline:8080/", "a request from pod to pod"),
        ("nodeseal lab down", "remove it"),
    ),
    "lab demo": (
        ("nodeseal lab demo", "makes a lab of its own, and removes it"),
        ("nodeseal lab demo identity", "the same for certificates, roots and trust domains"),
    ),
    "lab down": (
        ("nodeseal lab down", "the lab named lab"),
        ("nodeseal lab down --name demo", "another one"),
    ),
    "lab enrol": (("nodeseal lab enrol intruder", "it takes part from now on"),),
    "lab exec": (
        ("nodeseal lab exec shipper -- curl -sS http://pipeline:8080/", "a request from pod to pod"),
        ("nodeseal lab exec --name demo siem -- bash", "a shell in a pod of another lab"),
    ),
    "lab mode": (("nodeseal lab mode siem strict", "no plaintext to siem any more"),),
    "lab status": (
        ("nodeseal lab status", "the lab named lab"),
        ("nodeseal lab status -o json", "with the processes' ids, for a script"),
    ),
    "lab unenrol": (("nodeseal lab unenrol shipper siem", "what they open from now on goes direct"),),
    "lab up": (
        ("nodeseal lab up", "two nodes and four pods"),
        ("nodeseal lab up --name big --nodes 3 --pod web:node3 --ipv6", "a larger one beside it"),
        ("nodeseal lab up --host-workload registry:node1:5000", "with a process of a node itself"),
        ("nodeseal lab up --trust-domain node2:partner.example", "with a node of another trust domain"),
    ),
    "mesh": (("nodeseal mesh check /etc/nodeseal/mesh", "whether nodes would take it"),),
    "mesh check": (
        ("nodeseal mesh check mesh/", "in a pipeline, before it is rolled out"),
        ("nodeseal mesh check mesh/ -o json", "the problems for a script"),
    ),
    "revoke": (
        ("nodeseal revoke identity spiffe://example.org/ns/default/sa/web", "its connections are cut at once"),
        ("nodeseal revoke list", "what is revoked"),
    ),
    "revoke identity": (
        ("nodeseal revoke identity spiffe://example.org/ns/default/sa/web", "whoever has it"),
        ("nodeseal revoke identity spiffe://example.org/ns/default/sa/web --undo", "take it back"),
    ),
    "revoke list": (("nodeseal revoke list", "since when, and why"),),
    "revoke node": (
        ("nodeseal revoke node node3 --reason stolen", "and the identities of its workloads"),
        ("nodeseal revoke node node3 --issued issued.json", "and the certificates that were issued to it"),
        ("nodeseal revoke node node3 --undo", "all of that"),
    ),
    "revoke serial": (
        ("nodeseal revoke serial 78689e6389569f1ea392b7b071f8b22dc2ff7997", "one certificate"),
        ("nodeseal revoke serial --file serials.txt", "many"),
    ),
    "status": (
        ("nodeseal status", "the node of this network namespace, or all"),
        ("nodeseal status --workload shop/cart-0", "of one workload"),
        ("nodeseal status --check --run-dir /run/nodeseal", "one line and an exit status, for monitoring"),
        ("nodeseal status --run-dir /run/nodeseal -o json", "everything that the agent tells"),
    ),
    "trust": (
        ("nodeseal trust list", "the trust anchors of the mesh"),
        ("nodeseal trust add /etc/nodeseal/ca/root.pem new/root.pem", "the first step of a rotation"),
        ("nodeseal trust status", "which nodes have them"),
    ),
    "trust add": (
        ("nodeseal trust add /etc/nodeseal/ca/root.pem new/root.pem", "the present root and the next one"),
        ("nodeseal trust add --mesh /etc/nodeseal/mesh new/root.pem", "where no agent runs"),
    ),
    "trust list": (("nodeseal trust list", "what there is, and how long it is valid"),),
    "trust remove": (
        ("nodeseal trust remove 9c05d9feb092cbb9", "by the beginning of its fingerprint"),
        ("nodeseal trust remove --force 9c05d9feb092cbb9", "although a node needs it still"),
    ),
    "trust status": (
        ("nodeseal trust status", "which node has which anchor, and which needs it"),
        ("nodeseal trust status -o json", "the same for a script"),
    ),
    "uninstall": (
        ("nodeseal uninstall | kubectl apply -f -", "first: clean every node"),
        ("nodeseal uninstall --delete | kubectl delete -f -", "then: delete what is left"),
    ),
    "upgrade-core": (
        ("nodeseal upgrade-core", "the node of this network namespace"),
        ("nodeseal upgrade-core --all", "every node of this machine, those of others too"),
    ),
    "version": (
        ("nodeseal version", "as nodeseal --version"),
        ("nodeseal version -o json", "for a script"),
    ),
}
