"""A case: a function that is run in both labs, the settings it is run in, and the differences that are known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from differential.observation import Difference, Observation, compare
from differential.setting import MESH, Relation, Setting
from differential.world import World

ATTEMPTS = 3
"""How often a case is run until it is believed that times differ, or do not."""

Function = Callable[[World], Observation]


@dataclass(frozen=True, slots=True)
class Notice:
    """A difference that stays."""

    key: str
    """Of the observation."""
    what: str
    """What the application notices."""
    why: str
    """Why it cannot be otherwise, or why it is meant to be so."""
    where: tuple[Relation, ...] = ()
    """In which relations; none: in all of the case's."""
    versions: tuple[int, ...] = (4, 6)

    def holds(self, setting: Setting) -> bool:
        """Whether it is about this setting."""
        return (not self.where or setting.relation in self.where) and setting.version in self.versions


@dataclass(frozen=True, slots=True)
class Case:
    """All about one."""

    function: Function
    settings: tuple[Setting, ...]
    notices: tuple[Notice, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.function.__name__.removeprefix("test_")

    @property
    def module(self) -> str:
        return self.function.__module__

    @property
    def summary(self) -> str:
        """What applications do in it, on one line."""
        return " ".join((self.function.__doc__ or "").split())

    def check(self, run: Callable[[Function, Setting], tuple[Observation, Observation]], setting: Setting) -> None:
        """Fails the test unless exactly what is noticed differs. `run`: gives what the enrolled lab saw, and the
        other."""
        wanted = [notice.key for notice in self.notices if notice.holds(setting)]
        for attempt in range(ATTEMPTS):
            enrolled, plain = run(self.function, setting)
            complaint, chance = judge(compare(enrolled, plain), wanted, enrolled, plain)
            if not complaint:
                return
            if not chance or attempt == ATTEMPTS - 1:
                pytest.fail(f"{self.summary}\n{complaint}", pytrace=False)


def judge(
    differences: Collection[Difference], wanted: Collection[str], enrolled: Observation, plain: Observation
) -> tuple[str, bool]:
    """What is wrong, in words, "" for nothing; and whether it may be chance, because it is about times alone."""
    unknown = [difference for difference in differences if difference.key not in wanted]
    seen = {difference.key for difference in differences}
    gone = [key for key in wanted if key not in seen]
    lines = [f"differs: {difference}" for difference in unknown]
    lines += [
        f"does not differ any more: {key} is {plain.get(key)!r} in both labs (with nodeseal {enrolled.get(key)!r}). "
        "Take its notice out of the case, and run: make reference"
        for key in gone
    ]
    if lines:
        lines += [f"with nodeseal: {dict(enrolled)}", f"without:       {dict(plain)}"]
    of_time = all(difference.of_time for difference in unknown) and all(
        isinstance(plain.get(key), float) for key in gone
    )
    return "\n".join(lines), of_time


CASES: list[Case] = []
"""All whose modules were imported, in their order there."""


def case(
    *relations: Relation, versions: Sequence[int] = (4,), notices: Sequence[Notice] = (), alone: bool = False
) -> Callable[[Function], Callable[..., None]]:
    """Makes a test of the function: one for each relation (MESH when there is none) and version of IP. `alone`: it
    measures what others disturb, or disturbs them."""
    settings = tuple(Setting(relation, version) for relation in relations or (MESH,) for version in versions)

    def decorate(function: Function) -> Callable[..., None]:
        one = Case(function, settings, tuple(notices))
        CASES.append(one)

        def test(worlds: Worlds, setting: Setting) -> None:
            one.check(worlds.run, setting)

        test.__name__, test.__doc__, test.__module__ = function.__name__, function.__doc__, function.__module__
        marked: Callable[..., None] = pytest.mark.parametrize("setting", settings, ids=str)(test)
        return pytest.mark.alone(marked) if alone else marked

    return decorate


class Worlds:
    """The two labs of a session."""

    def __init__(self, enrolled: Callable[[Setting, Sequence[int]], World], plain: Callable[..., World]) -> None:
        """Both make a world of a lab, given a setting and ports."""
        self._makers = (enrolled, plain)
        self._next_port = FIRST_PORT

    def run(self, function: Function, setting: Setting) -> tuple[Observation, Observation]:
        """What the function saw in the enrolled lab, and in the other; at the same time, on the same ports."""
        ports = range(self._next_port, self._next_port + PORTS)
        self._next_port = FIRST_PORT if ports[-1] > LAST_PORT else ports[-1] + 1
        with ThreadPoolExecutor(len(self._makers)) as threads:
            runs = [threads.submit(_run, function, make, setting, ports) for make in self._makers]
            enrolled, plain = [run.result() for run in runs]
        return enrolled, plain


FIRST_PORT, LAST_PORT, PORTS = 20000, 30000, 8
"""Out of the range of the clients' own ports."""


def _run(
    function: Function, make: Callable[[Setting, Sequence[int]], World], setting: Setting, ports: Sequence[int]
) -> Observation:
    world = make(setting, ports)
    try:
        return function(world)
    finally:
        world.close()
