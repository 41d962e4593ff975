"""Keeps one TCP connection open: sends a numbered line each 100 ms and checks that it comes back. It is the shipper's.

line_client.py ADDRESS PORT

Standard output, a line each: "connected LOCAL REMOTE", then "N MILLISECONDS" for each line that came back, and at the
end "closed N LONGEST_MILLISECONDS" (after SIGTERM, exit status 0) or "failed N REASON" (exit status 1).
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time

INTERVAL_SECONDS = 0.1
ECHO_TIMEOUT_SECONDS = 10.0


def main() -> int:
    address, port = sys.argv[1], int(sys.argv[2])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    number, longest = 0, 0.0
    try:
        with socket.create_connection((address, port), timeout=ECHO_TIMEOUT_SECONDS) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            say("connected", endpoint(connection.getsockname()), endpoint(connection.getpeername()))
            replies = connection.makefile("rb")
            while not stop.is_set():
                line = b"line %d\n" % (number + 1)
                began = time.monotonic()
                connection.sendall(line)
                reply = replies.readline()
                if reply != line:
                    what = "the connection was closed" if not reply else f"{reply!r} came back for {line!r}"
                    say("failed", number, what)
                    return 1
                number += 1
                milliseconds = (time.monotonic() - began) * 1000
                longest = max(longest, milliseconds)
                say(number, f"{milliseconds:.2f}")
                stop.wait(INTERVAL_SECONDS)
    except OSError as error:
        say("failed", number, error)
        return 1
    say("closed", number, f"{longest:.2f}")
    return 0


def endpoint(name: tuple[str, int]) -> str:
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def say(*words: object) -> None:
    print(*words, flush=True)


if __name__ == "__main__":
    sys.exit(main())
