"""What a configuration asks of this machine and what lies on it: verified at an agent's start and by `nodeseal check`.

Both ask here, so that the one refuses what the other does. Nothing is changed. What the file itself can tell is
config.py's; which backend can capture is found out by trying (capture/node.py, capture/features.py).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.signer import Signer
from nodeseal.capture.backends.backend import Choice
from nodeseal.capture.backends.iptables import cannot_park
from nodeseal.capture.errors import CaptureError
from nodeseal.capture.journal import Journal
from nodeseal.clock import utc_now
from nodeseal.cores.image import unusable
from nodeseal.daemon.composition import issuer_of, source_of
from nodeseal.identity.fips import unapproved
from nodeseal.identity.issuer import IssuerError
from nodeseal.linux import openssl
from nodeseal.linux.cgroup_hierarchies import hierarchies
from nodeseal.linux.cgroups import check_cgroup
from nodeseal.linux.errors import LinuxError
from nodeseal.linux.openssl import OpenSSLError
from nodeseal.local import config as configuration
from nodeseal.local import run_directory
from nodeseal.local.config import Config, ConfigError
from nodeseal.local.issuers import OwnCa
from nodeseal.local.tls_profile import TlsProfile
from nodeseal.mesh.model import Connect

_CONGESTION_CONTROLS = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def load_verified(path: Path) -> Config:
    """Reads a configuration file and verifies it. Raises ConfigError with every problem; root's privileges are needed
    to find none."""
    config = configuration.load(path)
    verify(path, config)
    return config


def verify(path: Path, config: Config) -> None:
    """`path`: where the configuration was read from. Raises ConfigError, one line a problem."""
    problems = []
    for name, look in _LOOKS.items():
        try:
            found = list(look(config))
        except OSError as error:
            found = [f"{error.filename or name}: {error.strerror or error}; run as root"]
        line = config.lines.get(name)
        problems += [f"{path}:{line}: {name}: {text}" if line else f"{path}: {name}: {text}" for text in found]
    if problems:
        raise ConfigError("\n".join(problems))


def congestion_problem(name: str) -> str | None:
    """Why the kernel does not let sockets use this congestion control; None when it does, or for "", the system's."""
    available = _CONGESTION_CONTROLS.read_text().split()
    if not name or name in available:
        return None
    # As the core tries it: the kernel loads a module for it where it may.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
        try:
            attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError:
            return f"{name} is not available, only {', '.join(available)}: modprobe tcp_{name}, or change it"
    return None


def _mesh(config: Config) -> Iterator[str]:
    yield from source_of(config).verify()


def _ca(config: Config) -> Iterator[str]:
    try:
        issuer_of(config)
    except IssuerError as error:
        yield str(error)


def _run_dir(config: Config) -> Iterator[str]:
    there = next(path for path in (config.run_dir, *config.run_dir.parents) if os.path.lexists(path))
    if not there.is_dir():
        yield f"{config.run_dir} cannot be used: {there} is not a directory"
    elif not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        yield f"{config.run_dir} cannot be used: {there} cannot be written"
    elif there == config.run_dir and (why := run_directory.changeable(there)) is not None:
        # Sockets, journal and compiled programs in it are believed.
        yield f"others can change the run directory {there}: {why}; chown root and chmod 700 it, or name another"
    else:
        try:
            Journal.load(config.run_dir)
        except CaptureError as error:
            yield str(error)


def _congestion_control(config: Config) -> Iterator[str]:
    problem = congestion_problem(config.congestion_control)
    if problem is not None:
        yield problem


def _cgroup(config: Config) -> Iterator[str]:
    """Whatever the backend: who names a cgroup wants eBPF there, and is not to get something else in silence."""
    if config.cgroup is not None:
        try:
            check_cgroup(config.cgroup)
        except LinuxError as error:
            yield str(error)


def _core(config: Config) -> Iterator[str]:
    if config.core.own_cgroup:
        try:
            hierarchies()
        except LinuxError as error:
            yield f"own_cgroup cannot be had: {error}"
    directory = config.core.image_directory
    if directory is not None and (why := unusable(directory)) is not None:
        yield f"image_directory cannot be used: {why}"


def _connect(config: Config) -> Iterator[str]:
    if config.connect is Connect.TRUTHFUL and config.capture is Choice.IPTABLES and (why := cannot_park()) is not None:
        yield f"truthful cannot be had with 'capture: iptables' here, say early, or have eBPF capture: {why}"


def _tls(config: Config) -> Iterator[str]:
    if config.tls is TlsProfile.FIPS:
        try:
            openssl.provider(fips=True)
        except OpenSSLError as error:
            yield (
                f"profile fips cannot be had: {error}; have OpenSSL's configuration activate its module "
                "(fips_module(7)), or leave the profile out"
            )
        for ca in (config.ca, *(one.ca for one in config.issuers)):
            if isinstance(ca, OwnCa) and (why := _unapproved(ca)) is not None:
                yield f"the CA in {ca.directory} cannot be used: {why}"


def _unapproved(ca: OwnCa) -> str | None:
    try:
        signer = Signer.load(ca.directory, utc_now())
    except AuthorityError:
        return None  # `_ca` says so.
    return unapproved((*signer.chain, signer.root))


_LOOKS: dict[str, Callable[[Config], Iterator[str]]] = {
    "mesh": _mesh,
    "ca": _ca,
    "run_dir": _run_dir,
    "congestion_control": _congestion_control,
    "cgroup": _cgroup,
    "connect": _connect,
    "core": _core,
    "tls": _tls,
}
