"""Tokens of service accounts, as the kubelet projects them into pods: asking the API server whose one is.

A TokenReview that names audiences says whether the token is for one of them; one that names none asks about the API
server's own. https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/ has the
object, and https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/ what a token says.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct, field

from nodeseal.https import one_line
from nodeseal.kubernetes.api import Api, AwayError
from nodeseal.kubernetes.objects import KubernetesObject, Resource

TOKEN_MAX = 8 * 1024
"""Bytes of a token: one is some 1.2 KB."""

_OF_POD = "authentication.kubernetes.io/pod-"
_OF_NODE = "authentication.kubernetes.io/node-"
_ACCOUNT = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a token says. What is not in it is empty."""

    audiences: frozenset[str]
    namespace: str
    """Of the service account, and of its pod."""
    service_account: str
    pod: str
    pod_uid: str
    node: str
    expires: float | None = None
    """Seconds since 1970; None: a review does not say it."""


@dataclass(frozen=True, slots=True)
class Review:
    """What the API server says of a token. `claims`: None: it does not take it, and `why` may say why."""

    claims: TokenClaims | None
    why: str = ""


class _User(Struct):
    username: str = ""
    extra: dict[str, list[str]] = field(default_factory=dict)


class _ReviewStatus(Struct):
    authenticated: bool = False
    audiences: list[str] = field(default_factory=list)
    error: str = ""
    user: _User = field(default_factory=_User)


class _ReviewAnswer(Struct):
    status: _ReviewStatus


class _Named(Struct):
    name: str = ""
    uid: str = ""


class _KubernetesClaims(Struct):
    namespace: str = ""
    node: _Named = field(default_factory=_Named)
    pod: _Named = field(default_factory=_Named)
    serviceaccount: _Named = field(default_factory=_Named)


class _Payload(Struct):
    aud: str | list[str] = field(default_factory=list)
    exp: float = 0.0
    of: _KubernetesClaims = field(default_factory=_KubernetesClaims, name="kubernetes.io")


TOKEN_REVIEWS: Resource[Any] = Resource("authentication.k8s.io", "v1", "tokenreviews", KubernetesObject)


async def review(api: Api, token: str, audience: str) -> Review:
    """What the server says of the token for this audience. Raises AwayError, RefusedError, AccessError."""
    asked = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    }
    answer = await api.create(TOKEN_REVIEWS, "", asked)
    try:
        status = msgspec.json.decode(answer, type=_ReviewAnswer).status
    except (msgspec.DecodeError, RecursionError):
        # Whatever the error holds is left out: the answer has the token in it.
        raise AwayError("the API server answers a TokenReview with what is none") from None
    if not status.authenticated:
        return Review(None, one_line(status.error).replace(token, "..."))
    kind, _, account = status.user.username.partition(_ACCOUNT)
    namespace, _, name = account.partition(":")
    if kind or not namespace or not name or ":" in name:
        return Review(None, "it is of no service account")

    def said(key: str) -> str:
        values = status.user.extra.get(key, [])
        return values[0] if len(values) == 1 else ""

    # A server that knows nothing of audiences answers with none: then it has not looked at them.
    return Review(
        TokenClaims(
            frozenset(status.audiences),
            namespace,
            name,
            said(_OF_POD + "name"),
            said(_OF_POD + "uid"),
            said(_OF_NODE + "name"),
        )
    )


def unproven_claims(token: str) -> TokenClaims | None:
    """What a token says of itself: nobody has looked at its signature, so nothing of it counts but as a reason not to
    ask about it. None: it is no token of a service account."""
    parts = token.split(".")
    if len(token) > TOKEN_MAX or len(parts) != 3:
        return None
    try:
        body = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        payload = msgspec.json.decode(body, type=_Payload)
    except (ValueError, binascii.Error, RecursionError):
        return None
    of = payload.of
    return TokenClaims(
        frozenset([payload.aud] if isinstance(payload.aud, str) else payload.aud),
        of.namespace,
        of.serviceaccount.name,
        of.pod.name,
        of.pod.uid,
        of.node.name,
        payload.exp,
    )
