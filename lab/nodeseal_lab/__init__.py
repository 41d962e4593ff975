"""The lab: nodes and pods on one machine, made of network namespaces.

What others build on (tests, bench, the command line): `lab` brings one up and takes it down, `plan` says what is in it,
`agents` asks the nodes' agents, `namespaces` and `processes` run something in it, `mesh_state` edits its workloads,
`errors` is what all of these raise. The rest is the lab's own.
"""
