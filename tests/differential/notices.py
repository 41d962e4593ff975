"""Reasons that several cases share."""

from __future__ import annotations

ACCEPTS_FIRST = (
    "**To come.** The core accepts the application's connection before it knows whether anyone answers. What is wrong "
    "is told by a reset afterwards. It is to hold the SYN until the far side has answered."
)
OWN_PORT = (
    "**To come.** The core chooses the source port of its connection to the application. It is to use the client's own."
)
