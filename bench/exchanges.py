"""What a handshake costs by its key exchange: `python -m bench.exchanges`.

The same two ends, in memory, by turns with a client that knows X25519 alone, one that offers X25519MLKEM768 alone, and
one that offers both as nodeseal does. An OpenSSL before 3.5 has X25519 alone.
"""

from __future__ import annotations

import subprocess
import sys

from bench.build import build_exchanges
from bench.errors import BenchError
from bench.tables import aligned

X25519 = "X25519"
HYBRID = "X25519MLKEM768"
GROUPS = {"X25519": X25519, "X25519MLKEM768": HYBRID, "both shares": f"*{HYBRID}:*{X25519}"}


def main() -> int:
    """The exit status."""
    try:
        program = build_exchanges()
        done = subprocess.run([str(program), *GROUPS.values()], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"{program} failed: {done.stderr.strip()}")
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    costs = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    rows = [("client's groups", "both ends", "ratio", "hello", "server that waits")]
    for name, (spent, hello, waiting) in zip(GROUPS, costs, strict=True):
        if spent:
            ratio = spent / costs[0][0]
            rows.append((name, f"{spent:.0f} us", f"{ratio:.2f}", f"{hello:.0f} bytes", f"{waiting / 1024:.0f} KiB"))
    print(aligned(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
