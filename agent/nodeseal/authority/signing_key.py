"""The keys that sign certificates: all that signs does it through `SigningKey`.

Today they are in files and memory (`FileKey`). A key that never leaves a hardware module or a service is another class
with these two members: nothing else asks for a key's bytes, but for what writes the files of a CA. Its `sign` gives the
builder an object that implements `EllipticCurvePrivateKey` or one of its like, whose own `sign` asks the module.
"""

from __future__ import annotations

from typing import Protocol, Self, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from nodeseal.contracts.key_kind import KeyKind

LeafKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
"""What a certificate of nodeseal's is for: a workload's, a node's, or a CA's that was made here."""

CaKey = LeafKey | rsa.RSAPublicKey
"""What a certificate of nodeseal's is signed by: a CA that others made may have RSA."""

_PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Unsigned(Protocol[T_co]):
    """A certificate or a request that is complete but for its signature: a builder of `cryptography.x509`."""

    def sign(self, private_key: _PrivateKey, algorithm: _Hash | None) -> T_co:
        """With its signature. Raises ValueError for one that is not complete."""


class SigningKey(Protocol):
    """A private key, wherever it is."""

    @property
    def public_key(self) -> CaKey:
        """What its signatures are verified by."""

    def sign(self, unsigned: Unsigned[T]) -> T:
        """The certificate or request, signed over the hash that belongs to the kind of key. Raises ValueError for one
        that is not complete."""


class FileKey:
    """A key of a file, or one that is to be written into a file."""

    __slots__ = ("_key",)

    def __init__(self, key: _PrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"FileKey({kind_of(self.public_key)})"

    @classmethod
    def generate(cls, kind: KeyKind) -> Self:
        """A fresh one."""
        match kind:
            case KeyKind.P256:
                return cls(ec.generate_private_key(ec.SECP256R1()))
            case KeyKind.P384:
                return cls(ec.generate_private_key(ec.SECP384R1()))
            case KeyKind.ED25519:
                return cls(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """Of PEM; None: a key of a kind that signs no certificates here. Raises TypeError for one that is encrypted,
        ValueError or UnsupportedAlgorithm for what is no key."""
        key = load_pem_private_key(data, password=None)
        return cls(key) if isinstance(key, _PrivateKey) else None

    @property
    def public_key(self) -> CaKey:
        """See SigningKey.public_key."""
        return self._key.public_key()

    def sign(self, unsigned: Unsigned[T]) -> T:
        """See SigningKey.sign."""
        return unsigned.sign(self._key, _hash_for(self._key))

    def pem(self) -> bytes:
        """PKCS 8, not encrypted: for a file that its owner alone can read."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def kind_of(key: object) -> str:
    """The word for a public key: a KeyKind's, or of other kinds the curve or "rsa" with the size."""
    match key:
        case ed25519.Ed25519PublicKey():
            return KeyKind.ED25519.value
        case ec.EllipticCurvePublicKey():
            return _CURVES.get(key.curve.name, key.curve.name)
        case rsa.RSAPublicKey():
            return f"rsa{key.key_size}"
    return "unknown"


def known_kind(key: object) -> KeyKind | None:
    """The same of those that nodeseal makes; None: it makes none of that kind."""
    return next((kind for kind in KeyKind if kind.value == kind_of(key)), None)


_CURVES = {"secp256r1": KeyKind.P256.value, "secp384r1": KeyKind.P384.value}


def _hash_for(key: _PrivateKey) -> _Hash | None:
    """Of as many bits as the curve has; Ed25519 has its own (RFC 8410), None."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    if isinstance(key, rsa.RSAPrivateKey) or key.key_size <= 256:
        return hashes.SHA256()
    return hashes.SHA384() if key.key_size <= 384 else hashes.SHA512()
