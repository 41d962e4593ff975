"""Signing the certificates of workloads with the intermediate of a CA directory.

Certificates follow the X509-SVID standard (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md): one URI
SAN, a leaf that can sign nothing, signing certificates with the trust domain's id.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from nodeseal.authority import store
from nodeseal.authority.certificates import (
    REMEDY,
    authority_key_identifier,
    check_chain,
    check_valid,
    fingerprint,
    leaf_builder,
    pem,
    trust_domain,
)
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.rules import name_fault
from nodeseal.authority.signing_key import LeafKey, SigningKey
from nodeseal.authority.store import INTERMEDIATE_CERTIFICATE, ROOT_CERTIFICATE
from nodeseal.mesh.spiffe import Identity

CLOCK_SKEW = timedelta(seconds=60)
"""How far another node's clock may be behind: a certificate is valid from so long before it is issued."""


class Signer:
    """Signs leaves. Made by `load`; immutable."""

    def __init__(
        self, directory: Path, domain: str, chain: list[x509.Certificate], roots: list[x509.Certificate],
        signer: x509.Certificate, key: SigningKey,
    ) -> None:  # fmt: skip
        self._directory = directory
        self._key = key
        self.chain = tuple(chain)
        """The intermediate, and what is between it and its root."""
        self.root = signer
        """The trust anchor that signed the chain."""
        # A leaf must not outlive, nor be older than, anything that it is verified by.
        self._not_before = max(cert.not_valid_before_utc for cert in (*chain, signer))
        self._not_after = min(cert.not_valid_after_utc for cert in (*chain, signer))
        self.trust_domain = domain
        """The only trust domain that identities are issued in."""
        self.bundle_pem = "".join(pem(cert) for cert in roots)
        """The trust anchors: what peers' certificates are verified by."""

    def __repr__(self) -> str:
        return f"Signer({self.trust_domain!r}, valid until {self._not_after:%Y-%m-%d %H:%M:%SZ})"

    @property
    def anchors(self) -> frozenset[str]:
        """The fingerprints of the trust anchors."""
        return frozenset(map(fingerprint, x509.load_pem_x509_certificates(self.bundle_pem.encode())))

    @property
    def not_after(self) -> datetime:
        """When the intermediate, or what it is verified by, expires."""
        return self._not_after

    @classmethod
    def load(cls, directory: Path, now: datetime) -> Self:
        """Reads root.pem (one or more trust anchors), intermediate.pem (one, or a chain upwards) and intermediate.key.

        The root's key is not needed and not looked for. Raises AuthorityError if it could not sign, or if no peer
        would accept what it signs.
        """
        path, root_path = directory / INTERMEDIATE_CERTIFICATE, directory / ROOT_CERTIFICATE
        roots, chain = store.read_certificates(root_path), store.read_certificates(path)
        return cls.of(directory, path, chain, root_path, roots, lambda: store.read_key_of(directory, chain[0]), now)

    @classmethod
    def of(
        cls, directory: Path, path: Path, chain: list[x509.Certificate], root_path: Path,
        roots: list[x509.Certificate], key_of: Callable[[], SigningKey], now: datetime,
    ) -> Self:  # fmt: skip
        """The same of what was read before, wherever it is: the paths are for messages. `key_of`: asked when the
        certificates are good; the key belongs to the lowest. Raises AuthorityError, and what that raises."""
        now = _utc(now)
        signer = check_chain(chain, path, roots, root_path, now)
        key = key_of()
        domain = trust_domain(chain[0], path)
        for cert in (*chain, signer):
            if (fault := name_fault(cert, domain)) is not None:
                where = root_path if cert is signer else path
                raise AuthorityError(f"{where} cannot be used for workloads: it {fault}; {REMEDY}")
        return cls(directory, domain, chain, roots, signer, key)

    def sign(
        self,
        identity: Identity,
        key: LeafKey,
        *,
        lifetime: timedelta,
        now: datetime,
        server_only: bool = False,
    ) -> x509.Certificate:
        """A certificate for this identity and key, valid for `lifetime` at most: never longer than the signer's own.

        Takes a fraction of a millisecond. Raises AuthorityError for an identity of another trust domain, for a
        lifetime that is not positive, and while the signer itself is not valid.
        """
        now = _utc(now)
        if identity.trust_domain != self.trust_domain:
            raise AuthorityError(
                f"cannot issue {identity}: the CA in {self._directory} is for the trust domain {self.trust_domain}; "
                "state that one in the mesh state, or give the agent another CA"
            )
        if lifetime <= timedelta(0):
            raise AuthorityError(f"cannot issue {identity} for {lifetime}; set a certificate lifetime above zero")
        for cert in self.chain:
            check_valid(cert, self._directory / INTERMEDIATE_CERTIFICATE, now)
        if not self._not_before <= now < self._not_after:
            raise AuthorityError(
                f"the root in {self._directory / ROOT_CERTIFICATE} is not valid now; put a new CA there"
            )
        not_before = max(now - CLOCK_SKEW, self._not_before)
        # X.509 times are whole seconds; a lifetime of less than one must not end before it begins.
        not_after = min(max(now + lifetime, now + timedelta(seconds=1)), self._not_after)
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, *([] if server_only else [ExtendedKeyUsageOID.CLIENT_AUTH])]
        return self._key.sign(
            leaf_builder(str(identity), key, purposes, not_before, not_after)
            .issuer_name(self.chain[0].subject)
            .add_extension(authority_key_identifier(self.chain[0]), critical=False)
        )


def _utc(now: datetime) -> datetime:
    if now.tzinfo is None:
        raise ValueError("a time with a time zone is expected")
    return now.astimezone(UTC).replace(microsecond=0)
