"""Who may come in: the gate in front of every route. Host, origin and token are looked at before anything is routed."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from livetalk.realtime.server.protocol import Refused

OPEN = frozenset({"/", "/healthz", "/readyz"})
"""Paths that anyone may read: they tell nothing. So may everything of the page itself, below PAGE."""
PAGE = "/page/"
SAFE = frozenset({"GET", "HEAD"})
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=(), payment=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Policy:
    """token: "" asks for none. names: host names that are answered to; None: all."""

    token: str
    names: frozenset[str] | None

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raises Refused unless the request may be routed."""
        host = headers.get("host", "")
        if self.names is not None and host_name(host) not in self.names:
            # A page of another site whose name was made to point here (DNS rebinding) ends here.
            raise Refused("unknown_host", "this server does not answer under that name: see names= in its config", 421)
        if method not in SAFE:
            self._check_origin(host, headers)
        if self.token and path not in OPEN and not path.startswith(PAGE):
            self._check_token(headers.get("authorization", ""))

    def _check_origin(self, host: str, headers: Headers) -> None:
        """Only the page itself may change anything; programs that are no browsers send no origin."""
        origin = headers.get("origin", f"http://{host}")
        # What follows the scheme is the host and nothing else; "null" and whatever else there is differ from it.
        same = origin.partition("://")[2].lower() == host.lower()
        if not same or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise Refused("foreign_origin", "a page from elsewhere may not do this", 403)

    def _check_token(self, given: str) -> None:
        kind, _, token = given.partition(" ")
        # In constant time, and as bytes, since texts with other letters cannot be compared that way.
        same = hmac.compare_digest(token.strip().encode("utf-8", "surrogatepass"), self.token.encode())
        if kind.lower() != "bearer" or not same:
            raise Refused("unauthorised", "this server asks for its token", 401)


def host_name(host: str) -> str:
    """Of a Host header, without its port."""
    if host.startswith("["):
        return host[: host.find("]") + 1].lower()
    return host.partition(":")[0].lower().rstrip(".")


class Gate:
    """The gate, as ASGI middleware; it also puts HEADERS on every answer. There are no WebSockets here."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app, self.policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self.policy.check(scope["method"], scope["path"], Headers(scope=scope))
        except Refused as refused:
            await turn_away(refused, dressed)
            return
        await self.app(scope, receive, dressed)


async def turn_away(refused: Refused, send: Send) -> None:
    """Answers without having read the request's body."""
    body = json.dumps({"error": refused.code, "message": str(refused)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
