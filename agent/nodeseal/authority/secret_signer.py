"""The signer of a CA that is in a Secret of Kubernetes: read over the API, so that its key is in memory alone.

Two forms are taken: the files of a CA directory, and those that cert-manager and others write (`tls.crt`, `tls.key`,
`ca.crt`). Where there is no such Secret the service may make the CA: the root goes into a Secret of its own, which is
needed again for the next intermediate only, and may be taken away to a safe place. Of several services that begin at
once one makes it: a Secret of a name is created once, and the others read what is there. So no lock is needed, neither
here nor for renewing, which replaces the very version that was read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from nodeseal.authority.certificates import belong_together, check_valid, is_signed_by, parse
from nodeseal.authority.creation import make_authority, make_intermediate
from nodeseal.authority.description import endings
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.live_signer import HeldSigner
from nodeseal.authority.signer import Signer
from nodeseal.authority.signing_key import FileKey
from nodeseal.authority.store import INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY, ROOT_CERTIFICATE, ROOT_KEY
from nodeseal.kubernetes.access import AccessError
from nodeseal.kubernetes.api import Api, AwayError, RefusedError
from nodeseal.kubernetes.kept import SECRETS, Secret, secret
from nodeseal.kubernetes.objects import Key

log = logging.getLogger("nodeseal.ca")

_OTHERS_FORM = {ROOT_CERTIFICATE: "ca.crt", INTERMEDIATE_CERTIFICATE: "tls.crt", INTERMEDIATE_KEY: "tls.key"}
_FILE_MAX = 1 << 20


class SecretSigner(HeldSigner):
    """Belongs to the event loop. `follow` is to be called every few seconds."""

    def __init__(self, api: Api, key: Key, root: Key | None, trust_domain: str, now: Callable[[], datetime]) -> None:
        """`key`: of the Secret; `root`: of the one that has the root where the service makes the CA; None: it does not.
        `now`: the wall clock."""
        self.trust_domain = trust_domain
        self.place = f"the CA in the Secret {'/'.join(key)}"
        self.why = "it was not read yet"
        self._api = api
        self._key = key
        self._root = root
        self._now = now
        self._version = ""

    def refresh(self) -> str | None:
        """See HeldSigner."""
        return self.why

    def warnings(self, now: datetime) -> list[str]:
        """See HeldSigner."""
        if self.signer is None:
            return []
        remedy = "put another into the Secret: docs/kubernetes-identity.md, 'The life of the CA'"
        place = Path(self._name)
        return [f"{one.text}: {one.remedy}" for one in endings(place, self.signer, now, renewal=remedy)]

    async def follow(self) -> None:
        """Reads a changed Secret anew, makes it where there is none, and renews what it has made when it is time. Says
        in `why` what is wrong."""
        try:
            found = await self._api.get(SECRETS, self._key)
            if found is None and self._root is not None:
                found = await self._make(self._root)
            if found is None:
                raise AuthorityError(
                    f"there is no Secret {self._name}; put a CA there, as docs/kubernetes-identity.md says"
                )
            if found.metadata.resource_version != self._version or self.why is not None:
                self._take(found)
            if self._root is not None and self._is_due():
                await self._renew(found, self._root)
            self.why = None
        except (AwayError, RefusedError, AccessError, AuthorityError) as error:
            self.why = str(error)
        except ValueError as error:
            self.why = f"the Secret {self._name} cannot be read: {error}"

    @property
    def _name(self) -> str:
        return "/".join(self._key)

    def _take(self, found: Secret) -> None:
        """Raises AuthorityError, ValueError."""
        signer = _signer(Path(self._name), found.files(), self._now())
        if signer.trust_domain != self.trust_domain:
            raise AuthorityError(
                f"the CA in the Secret {self._name} is for the trust domain {signer.trust_domain}, and the service for "
                f"{self.trust_domain}; correct one of them"
            )
        if self.signer is not None:
            log.info("%s was read anew", self.place)
        self.signer, self._version = signer, found.metadata.resource_version

    async def _make(self, root: Key) -> Secret | None:
        """What is there then, whoever made it."""
        kept = await self._api.get(SECRETS, root)
        if kept is None:
            files = make_authority(self.trust_domain, now=self._now())
            made = {name: files[name] for name in (ROOT_CERTIFICATE, ROOT_KEY)}
            if not await self._create(root, made):
                kept = await self._api.get(SECRETS, root)
                if kept is None:
                    raise AuthorityError(f"the Secret {'/'.join(root)} comes and goes; leave it there")
        if kept is not None:
            files = self._next(kept.files(), root, kept.files().get(ROOT_CERTIFICATE, b""))
        if await self._create(self._key, {name: data for name, data in files.items() if name != ROOT_KEY}):
            log.info("the CA of the trust domain %s was made, in the Secret %s", self.trust_domain, self._name)
        return await self._api.get(SECRETS, self._key)

    async def _create(self, key: Key, files: Mapping[str, bytes]) -> bool:
        try:
            await self._api.create(SECRETS, key[0], secret(key, files))
        except RefusedError as error:
            if error.exists:
                return False
            raise
        return True

    def _is_due(self) -> bool:
        """In the last third of the intermediate's life: long before anybody is warned of its end."""
        if self.signer is None:
            return False
        (cert, *_above) = self.signer.chain
        left = cert.not_valid_after_utc - self._now()
        life = cert.not_valid_after_utc - cert.not_valid_before_utc
        # One that ends with its root cannot be helped by another.
        return left < life / 3 and cert.not_valid_after_utc < self.signer.root.not_valid_after_utc

    async def _renew(self, found: Secret, root: Key) -> None:
        kept = await self._api.get(SECRETS, root)
        if kept is None:
            return  # it was taken away: whoever has it renews, and is warned in time
        files = self._next(kept.files(), root, found.files().get(ROOT_CERTIFICATE, b""))
        try:
            version = found.metadata.resource_version
            await self._api.replace(SECRETS, self._key, secret(self._key, files, version))
        except RefusedError as error:
            if not error.conflict:
                raise
            return  # another one was first: what that one made is read the next time
        log.info("%s has a new intermediate", self.place)

    def _next(self, kept: Mapping[str, bytes], where: Key, anchors: bytes) -> dict[str, bytes]:
        """The files with another intermediate. Raises AuthorityError."""
        place = Path("/".join(where))
        root_key = _read_key(place / ROOT_KEY, kept.get(ROOT_KEY, b""))
        roots = _read_certificates(place / ROOT_CERTIFICATE, kept.get(ROOT_CERTIFICATE, b""))
        root = next((cert for cert in roots if belong_together(root_key, cert)), None)
        if root is None:
            raise AuthorityError(
                f"{place / ROOT_KEY} is not the key of {place / ROOT_CERTIFICATE}; correct that Secret"
            )
        check_valid(root, place / ROOT_CERTIFICATE, self._now())
        return {ROOT_CERTIFICATE: anchors, **make_intermediate(self.trust_domain, root, root_key, now=self._now())}


def _signer(place: Path, files: Mapping[str, bytes], now: datetime) -> Signer:
    """Raises AuthorityError."""
    names = _OTHERS_FORM if "tls.crt" in files else {name: name for name in _OTHERS_FORM}
    root_name, name, key_name = names[ROOT_CERTIFICATE], names[INTERMEDIATE_CERTIFICATE], names[INTERMEDIATE_KEY]
    roots = _read_certificates(place / root_name, files.get(root_name, b""))
    chain = _read_certificates(place / name, files.get(name, b""))
    while len(chain) > 1 and is_signed_by(chain[-1], chain[-1]):
        # Others put the root at the end of the chain: it is an anchor, and not shown.
        chain.pop()

    def key_of() -> FileKey:
        key = _read_key(place / key_name, files.get(key_name, b""))
        if not belong_together(key, chain[0]):
            raise AuthorityError(f"{place / key_name} is not the key of {place / name}; correct that Secret")
        return key

    return Signer.of(place, place / name, chain, place / root_name, roots, key_of, now)


def _read_certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    if not data or len(data) > _FILE_MAX:
        raise AuthorityError(f"the Secret has no {path}, or one that is too large; correct it")
    try:
        return parse(data)
    except ValueError:
        raise AuthorityError(f"{path} in the Secret holds no certificate in PEM form that can be used") from None


def _read_key(path: Path, data: bytes) -> FileKey:
    """Nothing that was made of a key's bytes gets into the message."""
    try:
        key = FileKey.read(data)
    except TypeError:
        raise AuthorityError(f"the key {path} in the Secret is encrypted; put it there unencrypted") from None
    except (ValueError, UnsupportedAlgorithm):
        raise AuthorityError(f"{path} in the Secret holds no private key in PEM form") from None
    if key is None:
        raise AuthorityError(f"the key {path} in the Secret is neither ECDSA, nor Ed25519, nor RSA")
    return key
