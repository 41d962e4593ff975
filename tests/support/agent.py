"""An agent whose BPF programs have been compiled already, which takes most of an agent's start. Run as

    python tests/support/agent.py COMPILED --config agent.yaml

where COMPILED is a file that `use_compiled` wrote. All else is as in `nodeseal agent`.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

from nodeseal.capture.bpf import runtime
from nodeseal.capture.bpf.compile import Compiled


def use_compiled(compiled: Compiled, path: Path) -> AbstractContextManager[object]:
    """While it is entered, the agents of labs are started with these programs. `path`: the file to keep them in."""
    path.write_text(compiled.to_json())
    return mock.patch("nodeseal_lab.agents.AGENT_COMMAND", (sys.executable, __file__, str(path)))


if __name__ == "__main__":
    from nodeseal.cli.main import main

    programs = Compiled.from_json(Path(sys.argv[1]).read_text())
    with mock.patch.object(runtime, "compile_in_child", return_value=programs):
        sys.exit(main(["agent", *sys.argv[2:]]))
