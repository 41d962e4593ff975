"""The splice core's process: `nodeseal core --run-dir DIR`.

The main thread serves the control socket (control_loop.py), the C core's worker threads move bytes, one thread
decides (decider.py). The process survives the agent: it keeps its listeners, its credentials and the last mesh state,
and ends only on SIGTERM, when it is asked to stop, or, once it is retired (another core takes what is new), with its
last connection. It must stay small: of nodeseal it imports the mesh model, the contract with the agent and this
package, nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nodeseal import __version__
from nodeseal.linux import control_socket, hardening
from nodeseal.linux.lock_file import AlreadyLocked, LockFile
from nodeseal.local import generations
from nodeseal.splice import native
from nodeseal.splice.control_loop import serve
from nodeseal.splice.control_server import ControlServer

log = logging.getLogger("nodeseal.core")

WORKERS_MAX = 64
_SWITCH_S = 0.0005  # a flow that waits for a decision waits no longer for the lock while a mesh state is taken in


def parser() -> argparse.ArgumentParser:
    """The command line of `nodeseal core`; the agent fills it, see nodeseal.cores.process."""
    # argparse asks shutil for a width that is not given, and shutil brings three compression libraries: 0.7 MB.
    result = argparse.ArgumentParser(
        prog="nodeseal core",
        description="The splice core; started by the agent.",
        formatter_class=partial(argparse.HelpFormatter, width=100),
    )
    result.add_argument("--run-dir", type=Path, required=True, help="the node's run directory")
    result.add_argument("--generation", type=int, default=1, help="this core's number among those of the node")
    result.add_argument("--build", default="", help="what hello is to tell as this core's build")
    result.add_argument("--trust-domain", required=True, help="the SPIFFE trust domain")
    result.add_argument("--workers", type=int, default=1, help="worker threads, 1 to 64")
    result.add_argument("--spin-us", type=int, default=0, help="microseconds to look for events before a sleep")
    result.add_argument("--congestion-control", default="", help="of connections between nodes")
    result.add_argument("--preconnect-ms", type=int, default=0, help="dial peers used within it ahead of need")
    result.add_argument(
        "--unacknowledged-ms", type=int, default=0, help="give up peers that acknowledge nothing for it"
    )
    result.add_argument("--fips", action="store_true", help="use OpenSSL's FIPS module alone")
    result.add_argument("--ready-fd", type=int, default=-1, help=argparse.SUPPRESS)
    return result


def main(arguments: Sequence[str]) -> int:
    """Runs a core until it is told to end; the exit status."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        _run(options)
    except AlreadyLocked as error:
        line = f"another core (pid {error.pid}) runs for {options.run_dir} as generation {options.generation}"
        return _fail(line, options.ready_fd)
    except native.NativeError as error:
        return _fail(str(error), options.ready_fd)
    except OSError as error:
        return _fail(f"cannot start the core in {options.run_dir}: {error}", options.ready_fd)
    return 0


def _fail(line: str, ready_fd: int) -> int:
    log.error("%s", line)
    if ready_fd >= 0:
        with contextlib.suppress(OSError):
            os.write(ready_fd, line.encode()[:4000])
    return 1


def _run(options: argparse.Namespace) -> None:
    if not 1 <= options.workers <= WORKERS_MAX:
        raise native.NativeError(f"--workers {options.workers}: expected 1 to {WORKERS_MAX}")
    hardening.forbid_dumps()
    hardening.raise_descriptor_limit()
    sys.setswitchinterval(_SWITCH_S)
    options.run_dir = options.run_dir.absolute()
    lock = LockFile(generations.lock_path(options.run_dir, options.generation))
    wake, signalled = socket.socketpair()
    with wake, signalled:
        signalled.setblocking(False)
        signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        library = native.load()
        if not native.protect_keys(library):
            log.warning(
                "private keys are in memory that may be swapped out: it cannot be locked (mlock(2)); give the core "
                "CAP_IPC_LOCK or a higher limit (LimitMEMLOCK)"
            )
        core = native.Core(
            library,
            workers=options.workers,
            trust_domain=options.trust_domain,
            spin_us=options.spin_us,
            congestion_control=options.congestion_control,
            preconnect_ms=options.preconnect_ms,
            unacknowledged_ms=options.unacknowledged_ms,
            fips=options.fips,
        )
        path = generations.socket_path(options.run_dir, options.generation)
        try:
            with control_socket.listen(str(path)) as listener:
                server = ControlServer(
                    core, trust_domain=options.trust_domain, generation=options.generation, build=options.build
                )
                server.decider.start()
                log.info(
                    "core %s started, generation %d, pid %d, %d workers",
                    __version__,
                    options.generation,
                    os.getpid(),
                    options.workers,
                )
                os.chdir("/")
                if options.ready_fd >= 0:
                    os.write(options.ready_fd, b"ready\n")
                    os.close(options.ready_fd)
                    options.ready_fd = -1
                try:
                    serve(server, listener, wake)
                finally:
                    server.decider.stop_asking()
                    server.decider.join()
        finally:
            core.stop()
            signal.set_wakeup_fd(-1)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            lock.release(remove=True)
    log.info("core ended, pid %d", os.getpid())
