"""`python -m nodeseal` is the command `nodeseal`."""

import sys

from nodeseal.cli.main import main

sys.exit(main())
