"""What can go wrong in the lab: one class per meaning, each text one line that says what, where and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class LabError(Exception):
    """Something in the lab did not work; the text is one line for the user."""


class NotRootError(LabError):
    """The lab makes network namespaces and loads BPF programs, which only root may do."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} needs root: a lab is made of network namespaces and BPF programs; run it with sudo")


class LabPlanError(LabError):
    """The nodes or pods asked for make no sense (an option of `lab up`)."""


class LabExistsError(LabError):
    """A lab of this name is up already."""


class NoLabError(LabError):
    """There is no lab of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no lab named '{name}' is up; start it with: nodeseal lab up --name {name}")


class UnknownPodError(LabError):
    """The lab has no pod of this name; the text lists those that it has."""

    def __init__(self, pod: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown pod '{pod}': this lab has {', '.join(known)}")


class LabBusyError(LabError):
    """Another `nodeseal lab` command is changing this lab."""

    def __init__(self, name: str) -> None:
        super().__init__(f"lab '{name}' is being changed by another nodeseal lab command; try again when it is done")


class InsidePodError(LabError):
    """A command that changes the host was started in a pod, by `lab exec`."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} was started inside a pod of a lab: leave the pod's shell first")


class MissingToolError(LabError):
    """A program that must be on PATH is not."""

    def __init__(self, tools: Sequence[str]) -> None:
        what = " and ".join(tools)
        are = "is" if len(tools) == 1 else "are"
        super().__init__(f"{what} {are} not on PATH; install with: apt-get install {' '.join(tools)}")


class AgentError(LabError):
    """A node's agent does not run, does not answer, or could not do what was asked of it."""
