"""What the agent's HTTPS clients have in common: answers are read up to a bound, and errors become one line each."""

from __future__ import annotations

import asyncio

import aiohttp

_LINE_MAX = 300


async def read_answer(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body of an answer as it is sent. Raises ValueError when it has more than `most` bytes."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > most:
            raise ValueError(f"it answers with more than {most} bytes")
        await asyncio.sleep(0)
    return bytes(body)


def why(error: Exception) -> str:
    """Why a request came to nothing, on one line."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    said = error.strerror if isinstance(error, OSError) else None
    return one_line(said or error) or type(error).__name__


def one_line(text: object) -> str:
    """What may have come from a server, on one line."""
    return "".join(one if one.isprintable() else " " for one in " ".join(str(text).split()))[:_LINE_MAX]
