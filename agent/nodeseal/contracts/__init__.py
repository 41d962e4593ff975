"""Every message between two processes of nodeseal, as types. Both ends import them.

msgspec asks for typing_extensions, and does without where it is not installed. It needs nothing of it that Python 3.11
lacks, and importing it takes some 5 MB of each core. So it is hidden while msgspec is imported.
"""

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_HIDDEN = "typing_extensions"

if _HIDDEN not in _modules:
    _modules[_HIDDEN] = None
    try:
        import msgspec  # noqa: F401
    finally:
        del _modules[_HIDDEN]
