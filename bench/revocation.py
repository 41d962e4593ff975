"""What revocation costs: `python -m bench.revocation`.

For sets of several sizes: the memory that the core keeps for them, and the time that a handshake takes for looking,
with making the digests of the peer's certificate, which it does in any case.
"""

from __future__ import annotations

import subprocess
import sys

from bench.build import build_revoked
from bench.errors import BenchError
from bench.tables import aligned

SIZES = (0, 1000, 100_000, 1_000_000)


def main() -> int:
    """The exit status."""
    try:
        program = build_revoked()
        rows = [("revoked", "memory", "looking", "with the digests")]
        for size in SIZES:
            done = subprocess.run([str(program), str(size)], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BenchError(f"{program} failed: {done.stderr.strip()}")
            kept, looking, in_all = map(float, done.stdout.split())
            rows.append(
                (f"{size:,}", f"{kept / (1 << 20):.1f} MiB", f"{looking / 1000:.2f} us", f"{in_all / 1000:.1f} us")
            )
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(aligned(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
