"""What a CA directory holds, for how long, and who else can get at it: for people, whatever state it is in."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from nodeseal.authority import store
from nodeseal.authority.certificates import fingerprint, path_length, stated_trust_domain
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.signer import Signer
from nodeseal.authority.signing_key import kind_of
from nodeseal.authority.store import INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY, NEXT_KEY, ROOT_CERTIFICATE, ROOT_KEY
from nodeseal.contracts.output import CaCertificate, CaDescription
from nodeseal.linux.permissions import PRIVATE, UNCHANGED, others_can

WARN_BEFORE = timedelta(days=60)
"""So long before its end a certificate of the CA is worth a warning; of one with a short life it is a third."""

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Ending:
    """A certificate of the CA that is near its end, or past it. `text`: one line, what, where and when; `remedy`: the
    same, what to do."""

    over: bool
    text: str
    remedy: str


def endings(directory: Path, signer: Signer, now: datetime, renewal: str | None = None) -> Iterator[Ending]:
    """What of the signer ends soon. `directory`: where it was read, for what the lines say; `renewal`: how another
    intermediate comes there; None: by the commands for a directory."""
    now = now.astimezone(UTC)
    root_end = signer.root.not_valid_after_utc
    for number, cert in enumerate(signer.chain):
        # One that ends with its root cannot be helped by another.
        if cert.not_valid_after_utc < root_end and _is_near(cert, now):
            what = "intermediate" if number == 0 else "upper intermediate"
            remedy = renewal or _renewal(directory)
            yield _ending(f"the CA's {what} ({directory / INTERMEDIATE_CERTIFICATE})", cert, now, remedy)
    if _is_near(signer.root, now):
        remedy = renewal or "replace it: docs/operating.md, 'The life of the CA'"
        yield _ending(f"the CA's root ({directory / ROOT_CERTIFICATE})", signer.root, now, remedy)


def exposed(directory: Path) -> Iterator[str]:
    """One line for each file of the CA that others could read or change and must not, and for the directory itself."""
    for name in ("", ROOT_CERTIFICATE, ROOT_KEY, INTERMEDIATE_CERTIFICATE, INTERMEDIATE_KEY, NEXT_KEY):
        key = name.endswith(".key")
        path = directory / name
        try:
            why = others_can(path.stat(), PRIVATE if key else UNCHANGED)
        except OSError:
            continue
        if why is not None:
            yield f"others can {'read' if key else 'change'} {path}: {why}"


def describe(directory: Path, now: datetime) -> CaDescription:
    """Raises AuthorityError when there is no certificate to tell of."""
    now = now.astimezone(UTC)
    signer, why = None, None
    try:
        signer = Signer.load(directory, now)
    except AuthorityError as error:
        why = str(error)
    certificates = [
        *_certificates(directory, ROOT_CERTIFICATE, "root", (ROOT_KEY,), now),
        *_certificates(directory, INTERMEDIATE_CERTIFICATE, "intermediate", (INTERMEDIATE_KEY, NEXT_KEY), now),
    ]
    if not certificates:
        raise AuthorityError(why or f"{directory} holds no certificate")
    warnings = list(exposed(directory))
    if signer is not None:
        warnings += [f"{one.text}: {one.remedy}" for one in endings(directory, signer, now)]
    domains = {cert.trust_domain for cert in certificates if cert.trust_domain}
    return CaDescription(
        directory=str(directory),
        trust_domain=signer.trust_domain if signer else domains.pop() if len(domains) == 1 else None,
        usable=signer is not None,
        why=why,
        certificates=certificates,
        keys={name: (directory / name).exists() for name in (ROOT_KEY, INTERMEDIATE_KEY, NEXT_KEY)},
        warnings=warnings,
    )


def _certificates(
    directory: Path, name: str, role: str, keys: tuple[str, ...], now: datetime
) -> Iterator[CaCertificate]:
    try:
        found = store.read_certificates(directory / name)
    except AuthorityError:
        return
    for cert in found:
        yield CaCertificate(
            role=role,
            file=name,
            subject=cert.subject.rfc4514_string(),
            trust_domain=stated_trust_domain(cert),
            not_before=cert.not_valid_before_utc.isoformat(timespec="seconds"),
            not_after=cert.not_valid_after_utc.isoformat(timespec="seconds"),
            days_left=(cert.not_valid_after_utc - now) // _DAY,
            sha256=fingerprint(cert),
            serial=f"{cert.serial_number:x}",
            path_length=path_length(cert),
            key_type=kind_of(cert.public_key()),
            key=next((key for key in keys if store.is_key_of(directory / key, cert)), None),
        )


def _is_near(cert: x509.Certificate, now: datetime) -> bool:
    end = cert.not_valid_after_utc
    return end - now <= min(WARN_BEFORE, (end - cert.not_valid_before_utc) / 3)


def _ending(what: str, cert: x509.Certificate, now: datetime, remedy: str) -> Ending:
    end = cert.not_valid_after_utc
    at = f"{end:%Y-%m-%d %H:%M}Z"
    if end <= now:
        return Ending(True, f"{what} expired at {at}", remedy)
    days = (end - now) // _DAY
    return Ending(False, f"{what} expires in {days} day{'s' if days != 1 else ''}, at {at}", remedy)


def _renewal(directory: Path) -> str:
    if (directory / ROOT_KEY).exists():
        return f"nodeseal ca renew {directory}"
    return f"nodeseal ca renew where the CA's {ROOT_KEY} is, or nodeseal ca request {directory} FILE here"
