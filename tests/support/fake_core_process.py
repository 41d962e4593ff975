"""`nodeseal core` with a stand-in for the compiled part, run by path: a real process and control socket, no traffic."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # where `support` is found, instead of what is in it

    from nodeseal.contracts import core as contract
    from nodeseal.splice import native, process
    from support.core_fakes import make_native

    contract.PROTOCOL = int(os.environ.get("NODESEAL_TEST_PROTOCOL", contract.PROTOCOL))
    native.load = lambda: make_native()[0]
    sys.exit(process.main(sys.argv[1:]))
