"""Starting a core process."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Self

from nodeseal.cores import place
from nodeseal.cores.client import CoreError
from nodeseal.cores.place import PlaceError
from nodeseal.local import generations
from nodeseal.local.config import Config
from nodeseal.local.core_settings import CoreSettings
from nodeseal.local.tls_profile import TlsProfile

_START_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """How a new core is started."""

    workers: int
    trust_domain: str
    spin_us: int = 0
    congestion_control: str = ""
    preconnect_ms: int = 0
    """Peers used within so many milliseconds are dialled again ahead of need; 0: none are."""
    unacknowledged_ms: int = 0
    """A peer that acknowledges nothing for so many milliseconds is given up; 0: none is."""
    fips: bool = False
    """Its TLS uses OpenSSL's FIPS module alone."""
    settings: CoreSettings = field(default_factory=CoreSettings)
    """Where it runs."""

    @classmethod
    def of(cls, config: Config, trust_domain: str) -> Self:
        """As the configuration asks for it."""
        unacknowledged = config.unacknowledged_limit or timedelta(0)
        return cls(
            config.workers,
            trust_domain,
            spin_us=round(config.spin.total_seconds() * 1_000_000),
            congestion_control=config.congestion_control,
            preconnect_ms=round(config.preconnect.total_seconds() * 1000),
            unacknowledged_ms=round(unacknowledged.total_seconds() * 1000),
            fips=config.tls is TlsProfile.FIPS,
            settings=config.core,
        )


CORE_COMMAND = (sys.executable, "-m", "nodeseal", "core")


def spawn(
    run_dir: Path, options: CoreOptions, generation: int = 1, *, core_command: Sequence[str] = CORE_COMMAND
) -> subprocess.Popen[bytes]:
    """Starts a core in a session of its own and waits until it serves its control socket.

    Its log goes to run_dir/core.log. Raises CoreError with the core's own line when it does not start.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    arguments = ["--run-dir", str(run_dir), "--ready-fd", str(writing)]
    arguments += ["--generation", str(generation), "--build", generations.build()]
    arguments += ["--workers", str(options.workers), "--trust-domain", options.trust_domain]
    arguments += ["--spin-us", str(options.spin_us), "--congestion-control", options.congestion_control]
    arguments += ["--preconnect-ms", str(options.preconnect_ms)]
    arguments += ["--unacknowledged-ms", str(options.unacknowledged_ms)]
    if options.fips:
        arguments.append("--fips")
    try:
        try:
            log_fd = os.open(
                run_dir / generations.LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            try:
                with place.launch(run_dir, options.settings, generation, core_command, arguments, writing) as launch:
                    process = subprocess.Popen(
                        launch.command,
                        stdin=subprocess.DEVNULL,
                        stdout=log_fd,
                        stderr=log_fd,
                        pass_fds=(writing, *launch.descriptors),
                        start_new_session=True,
                    )
            finally:
                os.close(log_fd)
        finally:
            os.close(writing)
        said = _read_until_ready(reading)
    except PlaceError as error:
        raise CoreError(f"cannot start the core: {error}") from None
    except OSError as error:
        raise CoreError(f"cannot start the core: {error.strerror or error}") from error
    finally:
        os.close(reading)
    if said != b"ready\n":
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        line = said.decode("utf-8", "replace").strip() or f"it said nothing; see {run_dir / generations.LOG_NAME}"
        raise CoreError(f"the core did not start: {line}")
    return process


def _read_until_ready(reading: int) -> bytes:
    poller = select.poll()
    poller.register(reading, select.POLLIN)
    said = b""
    while poller.poll(int(_START_TIMEOUT_S * 1000)):
        chunk = os.read(reading, 4096)
        said += chunk
        if not chunk or said == b"ready\n":
            return said
    return said or b"no sign of life in time"
