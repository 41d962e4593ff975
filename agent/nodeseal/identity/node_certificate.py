"""This node's own certificate, by which the certificate service knows it: kept in a file, with its key.

It is the one key that a node has in a file, and no workload's: so that an agent that starts again need not join again.
Both are in one file, which is replaced whole.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from cryptography import x509

from nodeseal.identity.key import PrivateKey
from nodeseal.identity.presented import PresentedError, public_key_of, read_chain, uris_of
from nodeseal.linux.permissions import PRIVATE, others_can
from nodeseal.local.run_directory import NODE_CERTIFICATE


@dataclass(frozen=True, slots=True)
class NodeProof:
    """A node certificate that is in its file."""

    path: Path
    issued: datetime
    """Or a little before, for one that was kept."""
    not_after: datetime

    @classmethod
    def load(cls, directory: Path, trust_domain: str, node: str) -> Self | None:
        """That of a former agent; None: there is none that can be used by this node."""
        path = directory / NODE_CERTIFICATE
        try:
            with path.open("rb") as file:
                if others_can(os.fstat(file.fileno()), PRIVATE) is not None:
                    return None
                cert = read_chain(file.read(1 << 16).decode("ascii", "replace"))[0]
            _check(cert, trust_domain, node)
        except (OSError, PresentedError):
            return None
        return cls(path, cert.not_valid_before_utc, cert.not_valid_after_utc)

    @classmethod
    def keep(
        cls, directory: Path, certificate: str, key: PrivateKey, trust_domain: str, node: str, issued: datetime
    ) -> Self:
        """Puts what the service has answered into the file. `issued`: by its clock. Raises PresentedError, OSError."""
        cert = read_chain(certificate)[0]
        _check(cert, trust_domain, node)
        if public_key_of(cert) != key.public:
            raise PresentedError("is for another key")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, draft = directory / NODE_CERTIFICATE, directory / f".{NODE_CERTIFICATE}.new"
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(certificate + key.pem())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        return cls(path, issued, cert.not_valid_after_utc)


def _check(cert: x509.Certificate, trust_domain: str, node: str) -> None:
    expected = f"spiffe://{trust_domain}/node/{node}"
    if uris_of(cert) != [expected]:
        raise PresentedError(f"is not for {expected}")
