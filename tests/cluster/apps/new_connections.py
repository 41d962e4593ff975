"""Opens one HTTP connection after another, with one request on each, until SIGTERM.

new_connections.py ADDRESS PORT

Standard output, a line each: "answered N" at least every 0.1 s while N changes, "failed SECONDS REASON" for a request
without an answer of status 200 (SECONDS: of CLOCK_MONOTONIC, which is the machine's), and at the end "ended N FAILED".
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException

PAUSE_SECONDS = 0.02
TIMEOUT_SECONDS = 60.0
TOLD_SECONDS = 0.1


def main() -> int:
    address, port = sys.argv[1], int(sys.argv[2])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    answered, failed, told = 0, 0, 0.0
    while not stop.is_set():
        connection = HTTPConnection(address, port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", "/", headers={"Connection": "close"})
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise HTTPException(f"status {response.status}")
            answered += 1
        except (OSError, HTTPException) as error:
            failed += 1
            say("failed", f"{time.monotonic():.4f}", str(error) or type(error).__name__)
        finally:
            connection.close()
        if time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            say("answered", answered)
        stop.wait(PAUSE_SECONDS)
    say("ended", answered, failed)
    return 0


def say(*words: object) -> None:
    print(*words, flush=True)


if __name__ == "__main__":
    sys.exit(main())
