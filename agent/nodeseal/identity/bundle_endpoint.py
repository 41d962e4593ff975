"""Fetching a bundle from a SPIFFE bundle endpoint
(https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Federation.md, section 5).

How it works: one GET over TLS 1.2 or 1.3 a fetch, on a connection of its own. With https_web the server's certificate
is verified for the host in the URL, by the system's CAs or by those of a file. With https_spiffe it is an X.509-SVID
with the one id that was configured, verified by the bundle of that id's trust domain, and looked at before a byte of
HTTP is sent. Redirects are not followed: section 7.5.1 leaves that to who configures the endpoint, and what a node
trusts should come from where its mesh state says. What the server answers is hostile: it is read up to a bound, the
whole fetch has a bound in time, and whoever gets the bytes parses them as such.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp

from nodeseal.authority.spiffe_bundle import MAX_BYTES
from nodeseal.https import one_line, read_answer, why
from nodeseal.identity.shown_id import shows
from nodeseal.mesh.federated import BundleEndpoint, Profile

FETCH_S = 30.0
"""The whole of a fetch, name resolution and all, takes so long at most."""
_CONNECT_S = 10.0


class BundleEndpointError(Exception):
    """There is no answer that is to be parsed. One line: why."""


async def fetch(endpoint: BundleEndpoint, anchors: str) -> bytes:
    """What the endpoint answers. `anchors`: the bundle (PEM) of its own trust domain, with https_spiffe. Raises
    BundleEndpointError."""
    try:
        context = await asyncio.to_thread(_context, endpoint, anchors)
        async with asyncio.timeout(FETCH_S):
            return await _get(endpoint.url, context)
    except TimeoutError:
        raise BundleEndpointError(f"{endpoint.url} did not answer within {FETCH_S:.0f} s") from None
    except (aiohttp.ClientError, OSError, ssl.SSLError, ValueError) as error:
        raise BundleEndpointError(f"{endpoint.url}: {why(error)}") from None


async def _get(url: str, context: ssl.SSLContext) -> bytes:
    connector = aiohttp.TCPConnector(ssl=context, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_S)  # the caller has a clock for the whole
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    async with (
        aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as session,
        session.get(url, headers=headers, allow_redirects=False) as response,
    ):
        if 300 <= response.status < 400:
            to = one_line(response.headers.get("Location", "nowhere"))
            raise ValueError(f"it redirects to {to}, which is not followed; if that is right, write it as the url")
        if response.status != 200:
            raise ValueError(f"it answers with the status {response.status}, not with a bundle")
        return await read_answer(response, MAX_BYTES)


def _context(endpoint: BundleEndpoint, anchors: str) -> ssl.SSLContext:
    """Raises ValueError, OSError, ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if endpoint.profile is Profile.SPIFFE:
        if not anchors:
            raise ValueError(f"it is known by the bundle of {endpoint.trust_domain}, and none is known yet")
        context.load_verify_locations(cadata=anchors)
        # The anchors of a bundle need not be self-signed.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False
        context.sslobject_class = shows(endpoint.spiffe_id)
    elif endpoint.ca_file:
        try:
            context.load_verify_locations(cadata=Path(endpoint.ca_file).read_text(encoding="ascii", errors="replace"))
        except (ssl.SSLError, ValueError, TypeError):  # the last for what is not ASCII
            raise ValueError(f"{endpoint.ca_file} holds no certificate in PEM form; correct 'ca_file'") from None
        except OSError as error:
            raise ValueError(f"cannot read {endpoint.ca_file}: {error.strerror or error}; correct 'ca_file'") from None
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context
