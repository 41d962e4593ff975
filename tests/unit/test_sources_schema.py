"""What is said about wrong files. Every message has file, line, field, what was expected and what was found."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from nodeseal.documents.document import MAX_BYTES, MAX_PROBLEMS
from nodeseal.mesh.limits import LimitChanges, Limits
from nodeseal.mesh.model import Mode, OnFailure, Phase, ServicePort, WorkloadName
from nodeseal.sources.directory.source import load
from nodeseal.sources.source import MeshStateError

WORKLOAD = "workloads:\n- {name: a, node: node1, address: 10.0.0.1}\n"
DOMAIN = "trust_domain: example.org\n"


def write(directory: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        path = directory / f"{name}.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory


def complaints(directory: Path) -> list[str]:
    with pytest.raises(MeshStateError) as caught:
        load(directory)
    lines = str(caught.value).splitlines()
    assert lines == [str(problem) for problem in caught.value.problems]
    return lines


def complaint(directory: Path, text: str | bytes) -> str:
    """The only complaint about a directory with one file `m.yaml`."""
    write(directory, m=text)
    (line,) = complaints(directory)
    return line


def test_a_workload_has_defaults(tmp_path: Path) -> None:
    workload = load(write(tmp_path, m=DOMAIN + WORKLOAD)).workloads[WorkloadName("default", "a")]
    assert workload.service_account == "default"
    assert workload.netns is None
    assert workload.wanted is False
    assert (workload.mode, workload.on_failure) == (Mode.PERMISSIVE, OnFailure.CLOSED)
    assert workload.phase is Phase.ABSENT


def test_all_fields_of_workloads_and_services_are_read(tmp_path: Path) -> None:
    mesh = load(
        write(
            tmp_path,
            m=DOMAIN + "workloads:\n"
            "- {name: a, namespace: n, service_account: s, node: node1, address: 10.0.0.1, netns: /run/netns/a,"
            " enrolled: true, mode: strict, on_failure: open}\n"
            "services:\n"
            "- {name: web, namespace: n, address: 10.9.0.1, ports: [{port: 80, target_port: 8080}, {port: 9}],"
            " endpoints: [a]}\n",
        )
    )
    workload = mesh.by_address[IPv4Address("10.0.0.1")]
    assert (workload.key, workload.service_account, workload.node) == (WorkloadName("n", "a"), "s", "node1")
    assert (workload.netns, workload.wanted, workload.mode) == ("/run/netns/a", True, Mode.STRICT)
    assert workload.on_failure is OnFailure.OPEN
    service = mesh.service_by_address[IPv4Address("10.9.0.1")]
    assert service.ports == (ServicePort(80, 8080), ServicePort(9, 9))
    assert service.endpoints == (WorkloadName("n", "a"),)


def test_limits_of_a_workload_are_read_and_those_not_named_are_left_to_its_node(tmp_path: Path) -> None:
    text = WORKLOAD.replace("}", ", limits: {connections: 100, memory: none, new_connections: 0}}")
    workload = load(write(tmp_path, m=DOMAIN + text)).workloads[WorkloadName("default", "a")]
    assert workload.limits == LimitChanges(connections=100, memory=0, new_connections=0)
    plain = load(write(tmp_path, m=DOMAIN + WORKLOAD)).workloads[WorkloadName("default", "a")]
    assert plain.limits == LimitChanges()
    some = WORKLOAD.replace("}", ", limits: {memory: 1GiB}}")
    workload = load(write(tmp_path, m=DOMAIN + some)).workloads[WorkloadName("default", "a")]
    assert workload.limits.over(Limits()) == Limits(memory=1 << 30)


def test_lists_of_several_files_are_put_together(tmp_path: Path) -> None:
    other = "services: [{name: s, address: 10.9.0.1, ports: [{port: 80}], endpoints: [default/a]}]\n"
    mesh = load(write(tmp_path, a=DOMAIN, b=WORKLOAD, c=other))
    assert len(mesh.workloads) == len(mesh.services) == 1


def test_hidden_files_and_other_suffixes_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, m=DOMAIN)
    for name in (".m.yaml", "m.yaml~", "m.yml~", "m.yaml.bak"):
        (tmp_path / name).write_text("nonsense")
    assert load(tmp_path).trust_domain == "example.org"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("node: n, address: 10.0.0.1", "m.yaml:3: workloads[0].name: expected a name, found nothing"),
        ("name: a, address: 10.0.0.1", "m.yaml:3: workloads[0].node: expected a name, found nothing"),
        ("name: a, node: n", "m.yaml:3: workloads[0].address: expected an IPv4 or IPv6 address, found nothing"),
        ("name: ~, node: n, address: 10.0.0.1", "m.yaml:3: workloads[0].name: expected a name, found nothing"),
        (
            "name: a, node: n, address: 10.0.0.999",
            "workloads[0].address: expected an IPv4 or IPv6 address, found '10.0.0.999'",
        ),
        (
            "name: a, node: n, address: '::1'",
            "workloads[0].address: expected an IPv6 address of an interface, found '::1'",
        ),
        ("name: a, node: n, address: 10.0", "address: expected an IPv4 or IPv6 address, found the fraction 10.0"),
        ("name: a, node: n, address: 127.0.0.1", "expected an IPv4 address of an interface, found '127.0.0.1'"),
        ("name: a, node: n, address: 224.0.0.1", "expected an IPv4 address of an interface, found '224.0.0.1'"),
        ("name: a, node: n, address: [10.0.0.1]", "expected an IPv4 or IPv6 address, found a list"),
        ("name: 123, node: n, address: 10.0.0.1", "expected a name, found the number 123 (put it in quotes)"),
        ("name: no, node: n, address: 10.0.0.1", "expected a name, found the truth value no (put it in quotes)"),
        ("name: a/b, node: n, address: 10.0.0.1", "a letter or digit first and last, found 'a/b'"),
        ("name: ../a, node: n, address: 10.0.0.1", "a letter or digit first and last, found '../a'"),
        ("name: {}, node: n, address: 10.0.0.1", "expected a name, found a mapping"),
        ("name: a, node: n, address: 10.0.0.1, enrolled: maybe", "enrolled: expected true or false, found 'maybe'"),
        ("name: a, node: n, address: 10.0.0.1, enrolled: 1", "expected true or false, found the number 1"),
        ("name: a, node: n, address: 10.0.0.1, mode: hard", "mode: expected permissive or strict, found 'hard'"),
        ("name: a, node: n, address: 10.0.0.1, on_failure: x", "on_failure: expected closed or open, found 'x'"),
        ("name: a, node: n, address: 10.0.0.1, netns: ../x", "netns: expected a path or a name under /run/netns"),
        ("name: a, node: n, address: 10.0.0.1, netns: /run/../x", "expected a path or a name under /run/netns"),
        ("name: a, node: n, address: 'fd00::1%eth0'", "expected an IPv4 or IPv6 address, found 'fd00::1%eth0'"),
        ("name: a, node: n, address: fe80::1", "expected an address that is valid beyond the link, found 'fe80::1'"),
        ("name: a, node: n, address: ff02::1", "expected an IPv6 address of an interface, found 'ff02::1'"),
        ("name: a, node: n, address: 0::ffff:10.0.0.1", "expected 10.0.0.1, as IPv4, found '0::ffff:10.0.0.1'"),
        (
            "name: a, node: n, address: 10.0.0.1, addresses: [fd00::1]",
            "expected either 'address' or 'addresses', found both",
        ),
        (
            "name: a, node: n, addresses: 10.0.0.1",
            "addresses: expected 1 to 32 addresses, each once, found '10.0.0.1'",
        ),
        ("name: a, node: n, addresses: []", "expected 1 to 32 addresses, each once, found a list of 0"),
        (
            f"name: a, node: n, addresses: [{', '.join(f'10.0.0.{last}' for last in range(1, 34))}]",
            "expected 1 to 32 addresses, each once, found a list of 33",
        ),
        ("name: a, node: n, addresses: [1.1.1.1, fd00::1, 1.1.1.1]", "addresses, each once, found 1.1.1.1 twice"),
        (
            "name: a, node: n, addresses: [1.1.1.1, 1.1.1.2], host: {cgroup: /a.slice}",
            "expected one address, or one of each family, found two IPv4 addresses",
        ),
        ("name: a, node: n, addresses: [1.1.1.1, x]", "addresses[1]: expected an IPv4 or IPv6 address, found 'x'"),
        (
            "name: a, node: n, address: 10.0.0.1, enroled: true",
            "expected 'enrolled', found the unknown field 'enroled'",
        ),
        (
            "name: a, node: n, address: 10.0.0.1, qqqqq: 1",
            "expected only address, addresses, enrolled, exclude, host, identity, limits, mode, name",
        ),
        (
            "name: a, name: b, node: n, address: 10.0.0.1",
            "name: expected each field once, found it again (first at line 3)",
        ),
        ("name: a, node: n, address: 10.0.0.1, 5: x", "workloads[0]: expected a field name, found the number 5"),
        (
            "name: a, node: n, address: 10.0.0.1, limits: {connections: x}",
            "workloads[0].limits.connections: expected a number of connections, or none, found 'x'",
        ),
        ("name: a, node: n, address: 10.0.0.1, limits: 5", "limits: expected a mapping, found the number 5"),
        ("name: a, node: n, address: 10.0.0.1, [x]: x", "workloads[0]: expected a field name, found a list"),
        ("name: &x a, node: n, address: 10.0.0.1", "expected a value without an anchor, found the anchor '&x'"),
        ("name: *x, node: n, address: 10.0.0.1", "expected a value written out, found the alias '*x'"),
        ("name: !!str a, node: n, address: 10.0.0.1", "expected a value without a tag, found the tag"),
        ("name: a, node: n, address: 10.0.0.1, service_account: a b", "service_account: expected 1 to 253 characters"),
    ],
)
def test_a_wrong_workload(tmp_path: Path, fields: str, message: str) -> None:
    line = complaint(tmp_path, f"{DOMAIN}workloads:\n- {{{fields}}}\n")
    assert line.startswith("m.yaml:3: ")
    assert message in line


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("ports: [{port: 0}]", "services[0].ports[0].port: expected a port from 1 to 65535, found the number 0"),
        ("ports: [{port: 65536}]", "expected a port from 1 to 65535, found the number 65536"),
        ("ports: [{port: 0x50}]", "expected a port from 1 to 65535, found the number 0x50"),
        ("ports: [{port: 010}]", "expected a port from 1 to 65535, found the number 010"),
        ("ports: [{port: 1:30}]", "expected a port from 1 to 65535, found the number 1:30"),
        ("ports: [{port: -1}]", "expected a port from 1 to 65535, found the number -1"),
        ("ports: [{port: http}]", "expected a port from 1 to 65535, found 'http'"),
        (f"ports: [{{port: {'9' * 100_000}}}]", "expected a port from 1 to 65535, found the number 999"),
        ("ports: [80]", "services[0].ports[0]: expected a mapping, found the number 80"),
        ("ports: 80", "services[0].ports: expected a list of ports, found the number 80"),
        ("ports: [{port: 80}, {port: 80}]", "ports[1].port: expected each port once, found 80 again"),
        ("ports: [{port: 80, target_port: 15008}]", "target_port: expected a port that is not the mesh's own"),
        (
            "endpoints: [b]",
            "services[0].endpoints[0]: expected the name of a workload, found 'default/b', which is none",
        ),
        ("endpoints: [a, default/a]", "services[0].endpoints[1]: expected each endpoint once, found default/a again"),
        ("endpoints: [a/b/c]", "endpoints[0]: expected a workload as name or namespace/name, found 'a/b/c'"),
        ("endpoints: a", "endpoints: expected a list of workload names, found 'a'"),
    ],
)
def test_a_wrong_service(tmp_path: Path, fields: str, message: str) -> None:
    rest = "" if fields.startswith("ports") else "ports: [{port: 80}], "
    rest += "" if fields.startswith("endpoints") else "endpoints: [a], "
    line = complaint(tmp_path, f"{DOMAIN}{WORKLOAD}services:\n- {{name: s, address: 10.9.0.1, {rest}{fields}}}\n")
    assert line.startswith("m.yaml:5: ")
    assert message in line
    assert len(line) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.yaml: expected a mapping, found nothing"),
        ("# nothing here\n", "m.yaml: expected a mapping, found nothing"),
        ("---\n...\n", "m.yaml:2: expected a mapping, found nothing"),
        ("- a\n", "m.yaml:1: expected a mapping, found a list"),
        ("hello\n", "m.yaml:1: expected a mapping, found 'hello'"),
        (f"{DOMAIN}---\na: 1\n", "m.yaml:2: expected one YAML document, found a second one"),
        (f"{DOMAIN}workloads: 5\n", "m.yaml:2: workloads: expected a list of workloads, found the number 5"),
        (f"{DOMAIN}workloads: [5]\n", "m.yaml:2: workloads[0]: expected a mapping, found the number 5"),
        (f"{DOMAIN}workload: []\n", "m.yaml:2: workload: expected 'workloads', found the unknown field 'workload'"),
        ("trust_domain: Example.org\n", "m.yaml:1: trust_domain: expected 1 to 255 characters of a-z, 0-9, '.', '_'"),
        ("trust_domain: 5\n", "m.yaml:1: trust_domain: expected a text, found the number 5 (put it in quotes)"),
        (f"{DOMAIN}workloads:\n\t- a\n", "m.yaml:3: expected YAML, found "),
        (f"{DOMAIN}workloads: [\n", "expected YAML, found "),
        (f"{DOMAIN}a: b: c\n", "m.yaml:2: expected YAML, found mapping values are not allowed"),
        (DOMAIN.encode() + b"x: \xff\n", "m.yaml:2: expected UTF-8 text, found the byte 0xff"),
        (DOMAIN.encode("utf-16"), "m.yaml:1: expected UTF-8 text, found the byte 0xff"),
        (f"{DOMAIN}x: \x00\n", "m.yaml:2: expected printable text, found the character U+0000"),
        (f"{DOMAIN}x: \x1b[31m\n", "m.yaml:2: expected printable text, found the character U+001B"),
        (f"{DOMAIN}x: {'[' * 900}\n", "m.yaml:2: x[0][0][0][0][0][0][0]: expected at most 8 levels of lists"),
        # PyYAML counts for itself as well, from 6.0.4 on.
        (f"{DOMAIN}x: {'[' * 100_000}\n", "m.yaml:2: "),
        (DOMAIN + "".join(f"k{i}: 1\n" for i in range(2000)), "m.yaml:1001: expected at most 1000 fields, found more"),
        (
            f"{DOMAIN}services: [{{endpoints: [{'a,' * 100_001}]}}]\n",
            "m.yaml:2: services[0].endpoints: expected at most 100000 items, found more",
        ),
        ("%YAML 9.9\n---\na: 1\n", "expected YAML, found incompatible YAML document"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in complaint(tmp_path, text)


def test_all_errors_of_all_files_are_told_in_one_go(tmp_path: Path) -> None:
    write(tmp_path, a=f"{DOMAIN}workloads:\n- {{name: a}}\n- {{nam: b, node: n, address: x}}\n", b="services: 5\n")
    assert complaints(tmp_path) == [
        "a.yaml:3: workloads[0].node: expected a name, found nothing",
        "a.yaml:3: workloads[0].address: expected an IPv4 or IPv6 address, found nothing",
        "a.yaml:4: workloads[1].name: expected a name, found nothing",
        "a.yaml:4: workloads[1].address: expected an IPv4 or IPv6 address, found 'x'",
        "a.yaml:4: workloads[1].nam: expected 'name', found the unknown field 'nam'",
        "b.yaml:1: services: expected a list of services, found the number 5",
    ]


def test_a_name_used_twice_names_both_places(tmp_path: Path) -> None:
    write(tmp_path, a=DOMAIN + WORKLOAD, b="workloads:\n- {name: a, node: n, address: 10.0.0.2}\n")
    assert complaints(tmp_path) == [
        "b.yaml:2: workloads[0].name: expected a name used once, found default/a again"
        " (first at a.yaml:3, workloads[0])"
    ]


def test_an_address_used_twice_names_both_places(tmp_path: Path) -> None:
    service = "services:\n- {name: b, address: 10.0.0.1, ports: [{port: 80}], endpoints: []}\n"
    write(tmp_path, a=DOMAIN + WORKLOAD, b=service)
    (line,) = complaints(tmp_path)
    assert line.startswith("b.yaml:2: ")
    assert line.endswith("found 10.0.0.1 again (first at a.yaml:3, workloads[0])")


def test_an_address_that_two_workloads_claim_is_neithers(tmp_path: Path) -> None:
    write(tmp_path, a=DOMAIN + WORKLOAD, b="workloads:\n- {name: b, node: n, addresses: [10.0.0.2, 10.0.0.1]}\n")
    mesh = load(tmp_path)
    assert [str(one.key) for one in mesh.contested[IPv4Address("10.0.0.1")]] == ["default/a", "default/b"]
    assert mesh.by_address.keys() == {IPv4Address("10.0.0.2")}


def test_a_workload_may_have_many_addresses(tmp_path: Path) -> None:
    texts = ["10.0.0.1", "fd00::2", "10.0.0.3", "fd00::1"]
    write(tmp_path, a=f"{DOMAIN}workloads:\n- {{name: a, node: n, addresses: [{', '.join(texts)}]}}\n")
    (workload,) = load(tmp_path).workloads.values()
    assert list(map(str, workload.addresses)) == texts
    assert list(map(str, workload.primaries)) == texts[:2]


def test_a_second_trust_domain_names_both_places(tmp_path: Path) -> None:
    write(tmp_path, a=DOMAIN, b="\n" + DOMAIN)
    assert complaints(tmp_path) == [
        "b.yaml:2: trust_domain: expected it in one file only, found it again (first at a.yaml:1)"
    ]


def test_a_missing_trust_domain_is_an_error(tmp_path: Path) -> None:
    assert complaint(tmp_path, WORKLOAD).endswith("in one of the *.yaml, *.yml or *.json files, found it in none")


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    assert complaints(tmp_path) == [
        f"{tmp_path}: expected 'trust_domain: <name>' in one of the *.yaml, *.yml or *.json files, found no such file"
    ]


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    assert complaints(tmp_path / "x") == [
        f"{tmp_path}/x: expected a directory that can be read, found none: no such file or directory"
    ]


def test_a_service_account_that_makes_the_identity_too_long_is_an_error(tmp_path: Path) -> None:
    line = complaint(
        tmp_path,
        f"trust_domain: {'d' * 255}\nworkloads:\n- {{name: a, namespace: {'n' * 253}, node: n, address: 10.0.0.1}}\n",
    )
    assert line.startswith("m.yaml:3: workloads[0].service_account: expected ")
    assert "too long" in line


def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "p.yaml")
    write(tmp_path, m=DOMAIN)
    assert complaints(tmp_path) == ["p.yaml: expected a regular file, found a device, pipe or socket"]


def test_a_directory_that_looks_like_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").mkdir()
    write(tmp_path, m=DOMAIN)
    assert complaints(tmp_path) == ["d.yaml: expected a regular file, found a directory"]


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "l.yaml").symlink_to(tmp_path / "missing")
    write(tmp_path, m=DOMAIN)
    assert complaints(tmp_path) == ["l.yaml: expected a readable file, found none: no such file or directory"]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "m.yaml").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "m.yaml: expected a file of at most 16 MiB, found a larger one" in complaints(tmp_path)


def test_a_file_name_cannot_break_the_message(tmp_path: Path) -> None:
    (tmp_path / "a\nb.yaml").write_text("x")
    write(tmp_path, m=DOMAIN)
    assert complaints(tmp_path) == ["a\\nb.yaml:1: expected a mapping, found 'x'"]


def test_a_file_full_of_mistakes_is_given_up(tmp_path: Path) -> None:
    write(tmp_path, m=f"{DOMAIN}workloads:\n" + "- 5\n" * 100_000)
    lines = complaints(tmp_path)
    assert len(lines) == MAX_PROBLEMS
    assert lines[-1] == f"m.yaml: expected fewer than {MAX_PROBLEMS} problems, found more; the rest is not shown"


def test_a_yaml_bomb_is_refused_unopened(tmp_path: Path) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(20)
    )
    write(tmp_path, m=DOMAIN + bomb)
    assert any("found the anchor '&a'" in line for line in complaints(tmp_path))


def test_a_large_state_is_read_item_by_item(tmp_path: Path) -> None:
    many = "".join(
        f"- {{name: w{i}, node: n{i % 50}, address: 10.{i >> 16}.{i >> 8 & 255}.{i & 255}}}\n" for i in range(1, 10_001)
    )
    assert len(load(write(tmp_path, m=f"{DOMAIN}workloads:\n{many}")).workloads) == 10_000


def test_the_reference_shows_a_state_that_loads(tmp_path: Path) -> None:
    text = Path(__file__).parents[2].joinpath("docs", "mesh-state.md").read_text()
    (tmp_path / "enrolled").mkdir()
    blocks = [block.split("```")[0] for block in text.split("```yaml\n")[1:]]
    assert len(blocks) == 5
    for block in blocks:
        title, _, _ = block.partition("\n")
        (tmp_path / title.removeprefix("# ")).write_text(block)
    mesh = load(tmp_path)
    assert {str(key): workload.phase for key, workload in mesh.workloads.items()} == {
        "default/shipper": Phase.ENROLLED,
        "default/siem": Phase.ABSENT,
        "telemetry/pipeline": Phase.ABSENT,
        "default/database": Phase.ABSENT,
        "default/ingress": Phase.ABSENT,
        "default/ledger": Phase.ABSENT,
    }
    assert mesh.workloads[WorkloadName("default", "ledger")].trust_domain == "partner.example"
    assert mesh.workloads[WorkloadName("default", "ingress")].limits == LimitChanges(100_000, 1 << 30, 0)
    assert mesh.workloads[WorkloadName("default", "database")].exclude
    assert mesh.services[WorkloadName("telemetry", "pipeline")].target_port(80) == 8080


def test_the_reference_names_every_field() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "mesh-state.md").read_text()
    for field in ("trust_domain", "workloads", "services", "name", "namespace", "service_account", "node", "address",
                  "netns", "enrolled", "mode", "exclude", "on_failure", "limits", "ports", "endpoints"):  # fmt: skip
        assert f"\n* `{field}`" in text
