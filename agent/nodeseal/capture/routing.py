"""The routing of a workload's captured packets, in its network namespace.

The table that marked packets are routed by holds, for the workload at 10.0.0.5 with the device eth0:

    local default dev lo src 10.0.0.5 metric 1   everything is delivered here, to the core
    local default dev eth0 metric 2              the same for a socket of the application that is bound to eth0: for it
                                                 no other device's route exists (listeners with SO_BINDTODEVICE)
    unreachable default metric 3                 what matches neither fails; it must never go on to the main table

and each mark has a rule that leads there. IPv6 has a table, under the same number, and rules of its own. There a bound
socket passes over the unreachable route as well, which belongs to lo; so a second rule for each mark, right behind the
first, ends what comes out of the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from nodeseal.capture.journal import Entry
from nodeseal.capture.removal import Step
from nodeseal.linux.namespace import NetworkNamespace
from nodeseal.linux.rtnetlink import LOOPBACK, Device, Route, Rule, add_routes, add_rules, remove_rules, remove_table


def put(entry: Entry, devices: Iterable[Device]) -> None:
    """Have the workload's marks lead to lo; `devices`: those to which its sockets may be bound. To be called inside the
    namespace. Raises LinuxError.
    """
    indices = [device.index for device in devices]
    for address in entry.near_addresses:
        local = [Route(1, LOOPBACK, address), *(Route(2, index, address) for index in indices)]
        add_routes(address.version, entry.table, [*local, Route(3)])
        add_rules(rule for mark in entry.marks for rule in _rules(entry, address.version, mark))


def removals(entry: Entry, namespace: NetworkNamespace, where: str) -> list[Step]:
    """The opposite of put(). `where`: whose it is, for what the steps say."""
    steps: list[Step] = []
    for version in entry.versions:
        for mark in entry.marks:
            action = partial(remove_rules, _rules(entry, version, mark))
            steps.append((f"IPv{version} routing rule for mark {mark:#x} of {where}", partial(namespace.run, action)))
        action = partial(remove_table, version, entry.table)
        steps.append((f"IPv{version} routing table {entry.table} of {where}", partial(namespace.run, action)))
    return steps


def _rules(entry: Entry, version: int, mark: int) -> list[Rule]:
    rules = [Rule(version, mark, entry.rule_priority, entry.table)]
    if version == 6:
        rules.append(Rule(version, mark, entry.rule_priority + 1, None))
    return rules
