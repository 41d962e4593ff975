"""Private keys: what others read of them, and that nothing is left of them in a process that has let them go."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from nodeseal.contracts.key_kind import KeyKind
from nodeseal.identity.key import PrivateKey, PrivateKeyError
from support.memory import places

URI = "spiffe://example.org/ns/default/sa/shipper"

# Makes a key, has it sign, hands it over and lets it go, step by step. Tells in hexadecimal what it handed over, which
# the process itself never sees.
STORY = """
import sys
from nodeseal.identity.key import PrivateKey
from nodeseal.contracts.key_kind import KeyKind
fd = int(sys.argv[2])
def hand_over(key):
    import os
    with key.exported() as made:
        os.sendfile(fd, made, 0, os.fstat(made).st_size)
key = PrivateKey.generate(KeyKind(sys.argv[1]))
key.request("spiffe://example.org/ns/default/sa/shipper")
hand_over(key)
print("held", flush=True)
sys.stdin.readline()
del key
print("gone", flush=True)
sys.stdin.readline()
"""


def public_of(key: PrivateKey) -> object:
    return serialization.load_der_public_key(key.public)


def exported(key: PrivateKey) -> bytes:
    with key.exported() as fd:
        return os.pread(fd, 4096, 0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (KeyKind.P256, ec.SECP256R1),
        (KeyKind.P384, ec.SECP384R1),
        (KeyKind.ED25519, ed25519.Ed25519PublicKey),
    ],
)
def test_others_read_the_key_that_is_handed_over(kind: KeyKind, expected: type) -> None:
    key = PrivateKey.generate(kind)
    read = serialization.load_der_private_key(exported(key), None)
    assert read.public_key() == public_of(key)
    public = read.public_key()
    assert isinstance(public.curve if isinstance(public, ec.EllipticCurvePublicKey) else public, expected)
    assert serialization.load_pem_private_key(key.pem().encode(), None).public_key() == public


@pytest.mark.parametrize("kind", KeyKind)
def test_request_is_signed_by_the_key_and_names_one_uri(kind: KeyKind) -> None:
    key = PrivateKey.generate(kind)
    request = x509.load_pem_x509_csr(key.request(URI))
    assert request.is_signature_valid
    assert request.public_key() == public_of(key)
    assert list(request.subject) == []
    (extension,) = request.extensions
    assert extension.critical
    assert [name.value for name in extension.value] == [URI]  # type: ignore[attr-defined]


def test_each_key_is_another() -> None:
    assert len({PrivateKey.generate().public for _ in range(50)}) == 50


@pytest.mark.parametrize("format", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_keys_of_others_are_read_and_handed_over(kind: str, encoding: Encoding, format: PrivateFormat) -> None:
    made = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP521R1())
    key = PrivateKey.read(made.private_bytes(encoding, format, NoEncryption()))
    assert public_of(key) == made.public_key()
    read = serialization.load_der_private_key(exported(key), None)
    assert read.public_key() == made.public_key()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", id="broken"),
        pytest.param(
            ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            id="public",
        ),
        pytest.param(
            ec.generate_private_key(ec.SECP256R1()).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
            ),
            id="encrypted",
        ),
    ],
)
def test_what_is_no_key_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(PrivateKeyError) as caught:
        PrivateKey.read(data)
    assert str(caught.value) == "it is no private key in PEM form or PKCS 8, or it is encrypted"


def test_what_is_handed_over_cannot_change_any_more() -> None:
    with PrivateKey.generate().exported() as fd:
        assert os.get_inheritable(fd) is False
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)


def test_key_shows_nothing_and_cannot_be_copied() -> None:
    key = PrivateKey.generate()
    assert repr(key) == str(key) == "PrivateKey(...)"
    with pytest.raises(TypeError, match="not to be copied"):
        pickle.dumps(key)


@pytest.fixture(params=KeyKind, ids=lambda kind: kind.value)
def told(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[bytes]]]:
    """A process that holds a key, and what stands for that key in a memory: its number in both orders, its PKCS 8."""
    with (tmp_path / "key").open("w+b") as file:
        holder = subprocess.Popen(
            [sys.executable, "-c", STORY, request.param.value, str(file.fileno())],
            pass_fds=[file.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            encoded = (tmp_path / "key").read_bytes()
            yield holder, [*secrets_of(encoded), encoded]
            holder.kill()


def secrets_of(encoded: bytes) -> list[bytes]:
    """The private number of a key, as it may lie in memory."""
    key = serialization.load_der_private_key(encoded, None)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return [key.private_bytes_raw()]
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    number = key.private_numbers().private_value
    size = key.curve.key_size // 8
    return [number.to_bytes(size, "big"), number.to_bytes(size, "little")]


@pytest.mark.skipif(os.geteuid() != 0, reason="another process's memory is for root to read")
def test_key_is_in_protected_memory_only_and_nowhere_once_it_is_gone(
    told: tuple[subprocess.Popen[str], list[bytes]],
) -> None:
    holder, secrets = told
    assert holder.stdin is not None
    assert holder.stdout is not None
    held = places(holder.pid, *secrets)
    assert held, "it is found where it is"
    assert all(one.protected for one in held), held
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "gone\n"
    assert places(holder.pid, *secrets) == []
