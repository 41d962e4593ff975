"""`nodeseal core` with a stand-in for the compiled part, run by path: a real process and control socket, no traffic."""

from __future__ import annotations

import os
import sys

from core_fakes import make_native
from nodeseal.linux import control_socket
from nodeseal.splice import native, process

control_socket.PROTOCOL = int(os.environ.get("NODESEAL_TEST_PROTOCOL", control_socket.PROTOCOL))
native.load = lambda: make_native()[0]
sys.exit(process.main(sys.argv[1:]))
