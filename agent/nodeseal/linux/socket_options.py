"""Socket options that the socket module lacks (include/uapi/asm-generic/socket.h, include/uapi/linux/in.h)."""

from __future__ import annotations

SO_MARK = 36
SO_NETNS_COOKIE = 71
IP_TRANSPARENT = 19
