"""The node's run directory: what lies in it, and which file says what about a running node."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from nodeseal.capture.bpf import cache
from nodeseal.linux import lock_file
from nodeseal.linux.permissions import PRIVATE, UNCHANGED, others_can
from nodeseal.local import generations

DEFAULT = Path("/run/nodeseal")
AGENT_LOCK = "agent.lock"
AGENT_NEXT = "agent.next"
AGENT_PID = "agent.pid"
AGENT_SOCKET = "agent.sock"
PLUGIN_SOCKET = "cni.sock"
CORE_LOG = generations.LOG_NAME
CORE_PLACE = "core-place.json"
CAPTURE_JOURNAL = "capture.json"
LEFTOVERS = "left-over.json"
PUBLICATION = "publication.json"
NODE_CERTIFICATE = "node.pem"
ISSUER_STATE = "issuer.json"
PLUGIN_PLACES = "cni.json"
ENROLLED_NAMESPACES = "enrolled-namespaces"
LET_THROUGH = "let-through"
OWN_FILES = (
    AGENT_SOCKET, AGENT_PID, AGENT_LOCK, AGENT_NEXT, CORE_LOG, f"{CORE_LOG}.1", CORE_PLACE, LEFTOVERS, PUBLICATION,
    cache.FILE_NAME, NODE_CERTIFICATE, ISSUER_STATE, PLUGIN_SOCKET, PLUGIN_PLACES,
    ENROLLED_NAMESPACES,
)  # fmt: skip
"""Beside those of the cores, see own_files()."""
_DRAFT = re.compile(
    rf"\.nodeseal-[a-z0-9_]{{8}}|\.?(?:{'|'.join(map(re.escape, OWN_FILES))}|cluster-.*\.jsonl|bundle-.*\.json)\.new"
)
_STANDBY = re.compile(r"agent-([1-9][0-9]*)\.lock")
_TRACES = (AGENT_SOCKET, AGENT_LOCK, CAPTURE_JOURNAL)


def has_node(run_dir: Path) -> bool:
    """Whether an agent or a core runs for this directory, or ran and left something."""
    try:
        return any((run_dir / name).exists() for name in _TRACES) or bool(generations.files(run_dir))
    except PermissionError:
        return True  # it is there, and not for this user to look into


def changeable(run_dir: Path) -> str | None:
    """Why others than root and this user could put something into it; None when they cannot. Raises OSError."""
    return others_can(run_dir.stat(), UNCHANGED)


def visible(run_dir: Path) -> str | None:
    """The same for looking into it."""
    return others_can(run_dir.stat(), PRIVATE)


def pids(run_dir: Path) -> list[int]:
    """The agents and the cores that run for this directory."""
    agent = lock_file.holder(run_dir / AGENT_LOCK)
    return [*([agent] if agent is not None else []), *standbys(run_dir), *generations.running(run_dir).values()]


def standby_lock(run_dir: Path, pid: int) -> Path:
    """What an agent holds that stands by for another one."""
    return run_dir / f"agent-{pid}.lock"


def standby_locks(run_dir: Path) -> list[Path]:
    """All of those that are there."""
    return sorted(path for path in run_dir.glob("agent-*.lock") if _STANDBY.fullmatch(path.name))


def standbys(run_dir: Path) -> list[int]:
    """The pids of agents that stand by."""
    return [pid for path in standby_locks(run_dir) if (pid := lock_file.holder(path)) is not None]


def own_files(run_dir: Path) -> list[Path]:
    """The files of agents and cores in it, whether they are there or not."""
    names = (run_dir / name for name in OWN_FILES)
    found = (standby_locks, generations.files, federated_bundles, cluster_copies, drafts)
    return [*names, *(path for files in found for path in files(run_dir))]


def drafts(run_dir: Path) -> list[Path]:
    """What an agent has left that was killed while it wrote one of these files. A key may be in it."""
    try:
        return sorted(path for path in run_dir.iterdir() if _DRAFT.fullmatch(path.name) is not None)
    except OSError:
        return []


def cluster_copy(run_dir: Path, kind: str) -> Path:
    """Where the objects of a kind are kept that were known of the cluster."""
    return run_dir / f"cluster-{kind}.jsonl"


def cluster_copies(run_dir: Path) -> list[Path]:
    """All of those that are there."""
    return sorted(run_dir.glob("cluster-*.jsonl"))


def federated_bundle(run_dir: Path, name: str) -> Path:
    """Where the bundle that was fetched of another trust domain is kept."""
    return run_dir / f"bundle-{name}.json"


def federated_bundles(run_dir: Path) -> list[Path]:
    """All of those that are there."""
    return sorted(run_dir.glob("bundle-*.json"))


def command(verb: str, run_dir: Path) -> str:
    """The command line that does something to the node of this run directory and to no other."""
    return f"nodeseal {verb} --run-dir {shlex.quote(str(run_dir))}"


def remember_publication(run_dir: Path, source: Mapping[str, str]) -> None:
    """Notes where this node publishes (see Source.reference), so that cleanup can withdraw it without a configuration,
    and where it did before. Raises OSError."""
    try:
        before = remembered_publications(run_dir)
    except ValueError:
        before = []
    _note_publications(run_dir, [source, *(one for one in before if one != source)])


def forget_publication(run_dir: Path, source: Mapping[str, str]) -> None:
    """Takes one that was withdrawn out of the note. Raises OSError, ValueError."""
    _note_publications(run_dir, [one for one in remembered_publications(run_dir) if one != source])


def remembered_publications(run_dir: Path) -> list[Mapping[str, str]]:
    """Where agents of this run directory have published and nobody has withdrawn it, the latest first. Raises OSError,
    and ValueError when the note is damaged."""
    path = run_dir / PUBLICATION
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    try:
        # A former version wrote the latest alone.
        noted = [value, *value.pop("former", ())]
        return [_reference(one) for one in noted]
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r})") from None


def remember_plugin(run_dir: Path, configurations: Path, programs: Path) -> None:
    """Notes where the network plugin is installed, so that cleanup finds it without a configuration, and where it was
    before. Raises OSError."""
    places = remembered_plugins(run_dir)
    if (configurations, programs) in places:
        return
    draft = run_dir / (PLUGIN_PLACES + ".new")
    rows = [[str(one), str(other)] for one, other in ((configurations, programs), *places)]
    draft.write_text(json.dumps(rows), encoding="utf-8")
    draft.replace(run_dir / PLUGIN_PLACES)


def remembered_plugins(run_dir: Path) -> list[tuple[Path, Path]]:
    """(Where lists of plugins are, where programs are) of each installation, the latest first."""
    try:
        rows = json.loads((run_dir / PLUGIN_PLACES).read_text(encoding="utf-8"))
        return [(Path(one), Path(other)) for one, other in rows]
    except (OSError, ValueError, TypeError):
        return []


def _reference(value: dict[str, object]) -> Mapping[str, str]:
    texts = {key: text for key, text in value.items() if isinstance(text, str)}
    if not texts or texts != value:
        raise TypeError(f"{value!r} says nothing")
    return texts


def _note_publications(run_dir: Path, sources: list[Mapping[str, str]]) -> None:
    latest, *former = sources
    draft = run_dir / (PUBLICATION + ".new")
    draft.write_text(json.dumps({**latest, "former": former}), encoding="utf-8")
    draft.replace(run_dir / PUBLICATION)


def write_pid(path: Path) -> None:
    """Writes this process's id, whole or not at all. Raises OSError."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(f"{os.getpid()}\n", encoding="ascii")
    draft.replace(path)
