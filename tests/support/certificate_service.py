"""A certificate service that tests tell what to say: HTTPS as `nodeseal ca serve` speaks it, in the test's own loop."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from nodeseal.authority.certificates import fingerprint, key_fingerprint
from nodeseal.authority.creation import init_authority
from nodeseal.authority.signer import Signer
from nodeseal.contracts import authority as contract
from nodeseal.contracts.authority import ServiceRefusal, ServiceWord
from nodeseal.identity import embedded
from nodeseal.mesh.spiffe import SpiffeId

TRUST_DOMAIN = "example.org"
TOKEN = "nodeseal-join-" + "x" * 43
DAY = timedelta(days=1)


class CertificateService:
    """`asked`: (operation's path, node that has proven itself) of each request; `refusals` are answered first, in their
    order; `tokens` are those that let a node join, once each."""

    def __init__(self, directory: Path, now: Callable[[], datetime]) -> None:
        init_authority(directory / "ca", trust_domain=TRUST_DOMAIN, now=now())
        self.signer = Signer.load(directory / "ca", now())
        self.tag = "1"
        self.bundle_pem = ""
        """More trust anchors than the signer's own."""
        self.tokens = {TOKEN}
        self.node_lifetime = DAY
        self.asked: list[tuple[str, str]] = []
        self.requests: list[contract.CertificateRequest] = []
        self.refusals: list[ServiceWord] = []
        self._now = now
        self._nodes_key = ec.generate_private_key(ec.SECP256R1())
        self._nodes = self._self_signed(self._nodes_key, "nodes", ca=True)
        own = ec.generate_private_key(ec.SECP256R1())
        certificate = self._self_signed(own, contract.SERVER_NAME)
        self.pin = key_fingerprint(own.public_key())
        self.anchor = directory / "service.pem"
        self.anchor.write_bytes(certificate.public_bytes(Encoding.PEM))
        both = directory / "service-and-key.pem"
        both.write_bytes(
            certificate.public_bytes(Encoding.PEM)
            + own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(both)
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self._context.verify_flags |= ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME
        self._context.load_verify_locations(cadata=self._nodes.public_bytes(Encoding.PEM).decode())
        self._runner: web.ServerRunner | None = None
        self.address = ""

    def stands_by_for(self, other: CertificateService) -> None:
        """It has the key of the other one from now on."""
        self.pin, self.anchor, self._context = other.pin, other.anchor, other._context

    async def start(self) -> None:
        """At `address` from now on, the same one as before if there was one."""
        port = int(self.address.rpartition(":")[2]) if self.address else 0
        self._runner = web.ServerRunner(web.Server(self._handle))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self._context, reuse_address=True)
        await site.start()
        self.address = f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Nobody answers there any more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        node = self._node_of(request)
        self.asked.append((request.path, node))
        if self.refusals:
            return refusal(self.refusals.pop(0))
        body = await request.read()
        if request.path == contract.BUNDLE.path:
            if request.headers.get("If-None-Match") == f'"{self.tag}"':
                return web.Response(status=304)
            anchors, anchor = self.bundle_pem or self.signer.bundle_pem, fingerprint(self.signer.root)
            return answer(contract.Bundle(trust_domain=TRUST_DOMAIN, anchors=anchors, anchor=anchor, tag=self.tag))
        if request.path == contract.NODE.path:
            return self._certify_node(contract.decode(body, contract.NodeRequest), node)
        if not node:
            return refusal(ServiceWord.NODE_UNPROVEN)
        asked = contract.decode(body, contract.CertificateRequest)
        self.requests.append(asked)
        signed = embedded.sign(self.signer, SpiffeId.parse(asked.identity), asked.csr, lifetime=DAY, now=self._now())
        leaf = x509.load_pem_x509_certificate(signed.chain_pem.encode())
        return answer(
            contract.Certificate(
                identity=asked.identity,
                chain=signed.chain_pem,
                serial=f"{leaf.serial_number:x}",
                issued=self._now(),
                not_before=leaf.not_valid_before_utc,
                not_after=leaf.not_valid_after_utc,
                anchor=fingerprint(self.signer.root),
                bundle=self.tag,
            )
        )

    def _certify_node(self, asked: contract.NodeRequest, proven: str) -> web.Response:
        node = asked.node or proven
        if asked.token is not None:
            if asked.token not in self.tokens:
                return refusal(ServiceWord.TOKEN_UNKNOWN)
            self.tokens.remove(asked.token)
        elif not proven:
            return refusal(ServiceWord.NODE_UNPROVEN)
        key = x509.load_pem_x509_csr(asked.csr.encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        identity, now = f"spiffe://{TRUST_DOMAIN}/node/{node}", self._now()
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._nodes.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + self.node_lifetime)
            .add_extension(names, critical=True)
            .sign(self._nodes_key, hashes.SHA256())
        )
        return answer(
            contract.NodeCertificate(
                node=node,
                identity=identity,
                trust_domain=TRUST_DOMAIN,
                certificate=made.public_bytes(Encoding.PEM).decode(),
                serial=f"{made.serial_number:x}",
                issued=now,
                not_before=made.not_valid_before_utc,
                not_after=made.not_valid_after_utc,
            )
        )

    def _node_of(self, request: web.BaseRequest) -> str:
        assert request.transport is not None
        shown = request.transport.get_extra_info("ssl_object").getpeercert(True)
        if shown is None:
            return ""
        names = x509.load_der_x509_certificate(shown).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return names.value.get_values_for_type(x509.UniformResourceIdentifier)[0].rpartition("/")[2]

    def _self_signed(self, key: ec.EllipticCurvePrivateKey, name: str, *, ca: bool = False) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1))
            .not_valid_after(datetime(2100, 1, 1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, hashes.SHA256())
        )


def answer(message: contract.Message, status: int = 200) -> web.Response:
    """As the service answers."""
    return web.Response(body=contract.encode(message), status=status, content_type="application/json")


def refusal(word: ServiceWord) -> web.Response:
    """The same for what it refuses; what may be tried again, at once."""
    status = contract.STATUSES[word]
    again = 0.0 if status >= 429 else None
    return answer(ServiceRefusal(word=word.value, detail="as the test says", retry_after_seconds=again), status)
