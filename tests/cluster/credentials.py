"""The cluster's CA, its certificates and kubeconfigs, as kubeadm would make them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFE = timedelta(days=30)
_BEFORE = timedelta(hours=1)


class Credentials:
    """Files in one directory. `user` is a name in Kubernetes: "system:node:node1"."""

    def __init__(self, directory: Path, server: str) -> None:
        """`server`: the API server's URL, for the kubeconfigs."""
        self.directory = directory
        self._server = server
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject("cluster-ca", ())
        builder = self._certificate(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True
        )
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        builder = builder.add_extension(self._identifier, critical=False)
        directory.mkdir(parents=True, mode=0o700)
        self.ca = directory / "ca.crt"
        self.ca_key = directory / "ca.key"
        self.ca.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        _write_key(self.ca_key, self._key)

    def issue(
        self,
        file: str,
        user: str,
        groups: Sequence[str] = (),
        *,
        addresses: Sequence[IPv4Address] = (),
        names: Sequence[str] = (),
    ) -> tuple[Path, Path]:
        """A certificate and its key, FILE.crt and FILE.key. With addresses or names: for a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if addresses or names else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = self._certificate(_subject(user, groups), key.public_key())
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier)
        builder = builder.add_extension(issuer, critical=False)
        others = [*map(x509.IPAddress, addresses), *map(x509.DNSName, names)]
        if others:
            builder = builder.add_extension(x509.SubjectAlternativeName(others), critical=False)
        certificate, key_file = self.directory / f"{file}.crt", self.directory / f"{file}.key"
        certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        _write_key(key_file, key)
        return certificate, key_file

    def kubeconfig(self, file: str, user: str, groups: Sequence[str] = ()) -> Path:
        """FILE.kubeconfig, with a new certificate of this user in it."""
        certificate, key = self.issue(file, user, groups)
        path = self.directory / f"{file}.kubeconfig"
        path.write_text(kubeconfig(self._server, self.ca.read_bytes(), certificate.read_bytes(), key.read_bytes()))
        path.chmod(0o600)
        return path

    def account_keys(self) -> tuple[Path, Path]:
        """The private and the public key of service accounts' tokens."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private, public = self.directory / "accounts.key", self.directory / "accounts.pub"
        _write_key(private, key)
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return private, public

    def _certificate(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BEFORE)
            .not_valid_after(now + _LIFE)
        )


def kubeconfig(server: str, ca: bytes, certificate: bytes, key: bytes) -> str:
    """A kubeconfig in JSON, which is YAML. The PEM texts go in as base64, as kubectl wants them."""
    from base64 import b64encode

    def data(pem: bytes) -> str:
        return b64encode(pem).decode()

    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": {"server": server, "certificate-authority-data": data(ca)}}],
        "users": [
            {"name": "user", "user": {"client-certificate-data": data(certificate), "client-key-data": data(key)}}
        ],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": "user"}}],
        "current-context": "cluster",
    }
    return json.dumps(value, indent=1) + "\n"


def _subject(user: str, groups: Sequence[str]) -> x509.Name:
    """The user is the common name, groups are organizations (kubernetes.io/docs/reference/access-authn-authz/)."""
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
