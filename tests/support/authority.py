"""What an operator does to a CA directory while agents run from it."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from nodeseal.identity import initialise
from nodeseal.lab.files import write_atomically


def renew_intermediate(directory: Path, trust_domain: str, lifetime: timedelta = timedelta(days=1)) -> int:
    """Another intermediate, with a key of its own, signed by the root; its serial number. The key comes first: an agent
    that reads in between finds that the two do not fit, and goes on with what it has."""
    root = x509.load_pem_x509_certificate((directory / initialise.ROOT_CERTIFICATE).read_bytes())
    root_key = load_pem_private_key((directory / initialise.ROOT_KEY).read_bytes(), None)
    assert isinstance(root_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC).replace(microsecond=0)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"nodeseal intermediate {os.urandom(4).hex()}")])
    certificate = initialise._ca(trust_domain, name, key, root.subject, root_key, 0, now, now + lifetime)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomically(directory / initialise.INTERMEDIATE_KEY, private.decode(), 0o600)
    write_atomically(directory / initialise.INTERMEDIATE_CERTIFICATE, certificate.public_bytes(Encoding.PEM).decode())
    return certificate.serial_number
