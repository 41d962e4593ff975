"""What the network plugin nodeseal-cni asks the agent, and what it is answered; and its entry in the list of plugins.

The plugin is in C (cext/cni). Its frames on cni.sock: MAGIC, the length of a JSON object in 32 bits, in a question the
milliseconds that the plugin waits for the answer, and the object; numbers in network order. The words of the
configuration and of errors are those of the CNI specification, version 1.1.0 (https://www.cni.dev/docs/spec/).
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from struct import Struct as Layout
from typing import Any, TypeVar

import msgspec

MAGIC = b"NSC1"
QUESTION_HEAD, ANSWER_HEAD = Layout(">4sII"), Layout(">4sI")
QUESTION_MAX, ANSWER_MAX = (1 << 20) + (1 << 16), 1 << 16
"""Bytes of the object; cext/cni/call.h bounds both as well."""

PLUGIN = "nodeseal-cni"
"""The plugin's `type` in a list of plugins, and the name of its file."""
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Of the specification, that the plugin knows."""


class ErrorCode(IntEnum):
    """The specification's, section 5, as far as the agent uses them."""

    ENVIRONMENT = 4
    DECODE = 6
    TRY_AGAIN = 11


class WithoutEnrolment(StrEnum):
    """What becomes of a pod that cannot be enrolled, or for which no agent answers."""

    CLOSED = "closed"
    """It does not start; the kubelet tries again."""
    BY_NAMESPACE = "by-namespace"
    """The same, but not for pods of namespaces of which the agent knows, or knew last, that they are not to be
    enrolled: for these it is as with `open`. A pod whose own label alone enrols it is such a one while no agent
    answers."""
    OPEN = "open"
    """It starts as it is, and is reported."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The plugin's entry in the list: its own configuration."""

    type: str = PLUGIN
    socket: str
    """The agent's, an absolute path."""
    on_failure: WithoutEnrolment = WithoutEnrolment.CLOSED
    open_namespaces: tuple[str, ...] = ()
    """Whose pods are treated as if `on_failure` was open."""


class Ip(msgspec.Struct, frozen=True):
    """An address that another plugin has given to the pod."""

    address: str
    """With the length of its network: "10.1.0.7/24"."""


class Result(msgspec.Struct, frozen=True):
    """Of the plugins before it."""

    ips: tuple[Ip, ...] = ()


class Attachment(msgspec.Struct, frozen=True, rename={"container_id": "containerID"}):
    """What the runtime still has, as GC says it."""

    container_id: str


_NAMES = {"version": "cniVersion", "result": "prevResult", "valid": "cni.dev/valid-attachments"}


class NetworkConfiguration(msgspec.Struct, frozen=True, rename=_NAMES):
    """What the runtime gives to the plugin: its entry, and what the specification adds."""

    version: str = ""
    on_failure: WithoutEnrolment = WithoutEnrolment.CLOSED
    open_namespaces: tuple[str, ...] = ()
    result: Result | None = None
    valid: tuple[Attachment, ...] = ()


def argument(args: str, key: str) -> str:
    """The value of a key of CNI_ARGS ("K8S_POD_NAME=web-1;IgnoreUnknown=1"); "" if there is none."""
    pairs = (pair.partition("=") for pair in args.split(";"))
    return next((value for name, _, value in pairs if name == key), "")


class Question(msgspec.Struct, frozen=True):
    """One call of the plugin: its environment's CNI_*, and the configuration."""

    command: str
    config: NetworkConfiguration
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""

    def argument(self, key: str) -> str:
        """The value of a key of CNI_ARGS; "" if there is none."""
        return argument(self.args, key)


class Reply(msgspec.Struct, frozen=True, rename={"version": "cniVersion"}):
    """`code` 0: the pod may start. Any other is printed as it is: an error of the specification."""

    version: str
    code: int = 0
    msg: str = ""
    details: str = ""


class LetThrough(msgspec.Struct, frozen=True):
    """A note of a pod that started without being enrolled; a file of its own in the run directory."""

    container_id: str
    netns: str
    args: str
    time: int
    """Seconds since the epoch."""


T = TypeVar("T", Question, LetThrough)


class MessageError(ValueError):
    """It is not what it should be; one line."""


def read(data: bytes, kind: type[T]) -> T:
    """Raises MessageError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(" ".join(str(error).split())) from None


def written(message: msgspec.Struct) -> bytes:
    """As JSON."""
    return msgspec.json.encode(message)


def as_json(message: msgspec.Struct) -> dict[str, Any]:
    """As the values that JSON has."""
    values: dict[str, Any] = msgspec.to_builtins(message)
    return values
