"""nodeseal's command line with the tests' settings in the agents of the labs that it brings up (settings.py). Run as

python tests/support/command.py lab up
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # where `support` is found, instead of what is in it

    from nodeseal.cli.main import main
    from support.settings import lab_settings

    with lab_settings():
        sys.exit(main())
