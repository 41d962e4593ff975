"""Dials each of several places some times, all at once, and prints for each what came of it: JSON, a list of lists of
"NAME:PORT", "refused", "silent" or the name of another error.

dials.py SECONDS TIMES,ADDRESS,PORT...
"""

from __future__ import annotations

import errno
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor


def dial(address: str, port: str, seconds: float) -> str:
    """One connection."""
    try:
        with socket.create_connection((address, int(port)), timeout=seconds) as connection:
            answer = connection.makefile().readline()
            return answer.split()[0] if answer else "closed"
    except TimeoutError:
        return "silent"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def main(seconds: str, *places: str) -> None:
    with ThreadPoolExecutor(64) as pool:
        wanted = [place.split(",") for place in places]
        futures = [
            [pool.submit(dial, address, port, float(seconds)) for _ in range(int(times))]
            for times, address, port in wanted
        ]
    print(json.dumps([sorted({one.result() for one in these}) for these in futures]))


if __name__ == "__main__":
    main(*sys.argv[1:])
