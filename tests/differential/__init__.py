"""The differential suite: what an application sees of its connections with nodeseal and without it, compared.

There are two labs with the same pods. In one the agents run and the workloads are enrolled; in the other there is no
nodeseal at all. A case is a function that does in one of them what applications do, and returns what it saw as plain
data:

    @case(*EVERYWHERE)
    def test_closed_port(world: World) -> Observation:
        \"""A client dials a port where nobody listens.\"""
        client = world.new_socket(None)
        result, seconds = timed(lambda: client.connect(world.target))
        return {"connect()": result, "time": seconds}

The framework (case.py) runs it in both labs at once, as often as there are settings: between which workloads
(setting.py) and over which family. It compares the two observations, key for key, with a tolerance for times
(observation.py). A difference fails the test, and is told in words with both values.

A difference that is known stands with the case as a Notice: the key, what is noticed, and why it cannot be otherwise.
It is strict: once nothing differs any more, the test fails until the notice is taken out.
docs/what-applications-notice.md is made from the cases and their notices by `make reference` (table.py); a test fails
when it is stale.

Rules for cases: A case knows nothing of nodeseal, and does not ask in which lab it is. What it opens is closed by its
world. It uses the ports that it is given (world.port). Whatever changes by itself is said relative to something (a port
that the kernel chose: "the port of the client's socket"), or as Seconds. Programs that a case needs are Debian packages
in the Makefile's APT_TEST: one that is missing is an error.
"""
