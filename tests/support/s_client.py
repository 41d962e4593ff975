"""A peer that is OpenSSL's own program: `openssl s_client`, told exactly what to offer, with an identity of the lab."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nodeseal.authority.signer import Signer
from nodeseal.contracts.key_kind import KeyKind
from nodeseal.mesh.spiffe import SpiffeId
from nodeseal_lab.namespaces import run_in
from support.issued import issue
from support.lab import HBONE_PORT, RunningLab
from support.patience import PATIENCE
from support.programs import Programs

_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS
_ACKNOWLEDGED = b"\0\0\0\4\1\0\0\0\0"  # RFC 9113, 6.5: only who has taken the client's certificate says that


@dataclass(frozen=True)
class Said:
    """`taken`: the core talks HTTP/2 with it. `text`: what the program said of the handshake."""

    taken: bool
    text: str


def present(lab: RunningLab, pod: str, directory: Path, kind: KeyKind = KeyKind.P256) -> Path:
    """A file with a key, and the pod's certificate for it with its chain, from the lab's CA."""
    now = datetime.now(UTC)
    signer = Signer.load(lab.directory / "ca", now)
    svid = issue(signer, SpiffeId.parse(lab.identity(pod)), lifetime=timedelta(hours=1), now=now, kind=kind)
    path = directory / f"{pod}-{kind.value}.pem"
    path.write_text(svid.chain_pem + svid.key.pem())
    return path


def dial(lab: RunningLab, programs: Programs, pod: str, presented: Path, *options: str) -> Said:
    """Dials the pod's core from the node `node1`, as TLS 1.3 with the options of s_client(1)."""
    command = ["openssl", "s_client", "-connect", f"{programs.at(pod)}:{HBONE_PORT}", "-tls1_3", "-alpn", "h2"]
    command += ["-cert", str(presented), "-key", str(presented), "-cert_chain", str(presented), "-ign_eof", *options]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )

    with run_in(lab.lab.plan.node("node1").netns, start) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it may not like its options
            process.stdin.write(_PREFACE)
        said, deadline = b"", time.monotonic() + PATIENCE
        while _ACKNOWLEDGED not in said and time.monotonic() < deadline:
            readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable or not (piece := os.read(process.stdout.fileno(), 1 << 16)):
                break
            said += piece
        process.kill()
    return Said(_ACKNOWLEDGED in said, said.decode("utf-8", "replace"))
