"""nodeseal's command line with the tests' settings in the agents of the labs that it brings up (settings.py). Run as

python tests/support/command.py lab up

NODESEAL_TEST_AGENT, if it is there, is the command with which these agents are started, in JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # where `support` is found, instead of what is in it

    from nodeseal.cli.main import main
    from nodeseal_lab import agents
    from support.settings import lab_settings

    command = json.loads(os.environ.get("NODESEAL_TEST_AGENT", "null")) or agents.AGENT_COMMAND
    with lab_settings(), mock.patch.object(agents, "AGENT_COMMAND", command):
        sys.exit(main())
