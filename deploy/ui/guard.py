"""Who may look, and what a browser may do with a page.

On loopback: whoever is on this machine, by a name that only this machine has (a page of somebody else can't make the
browser ask for ours under a name of its own). Beyond it: whoever has the token, given once in the address, then kept by
the browser.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse

COOKIE = "vcppo_ui_token"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
_PORT = re.compile(r":\d+$")
Next = Callable[[Request], Awaitable[Response]]


def is_loopback(host: str) -> bool:
    """Whether an address to bind to is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Every request goes through `__call__`; `token` None: none is needed, and only local names are answered."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def __call__(self, request: Request, following: Next) -> Response:
        response = self._refusal(request) or await following(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    def _refusal(self, request: Request) -> Response | None:
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("these pages are read-only\n", 405)
        if self._token is None:
            name = _PORT.sub("", request.headers.get("host", ""))
            if name not in _LOCAL_NAMES:
                return PlainTextResponse(f"unknown host name: use one of {', '.join(sorted(_LOCAL_NAMES))}\n", 403)
            return None
        given = request.query_params.get("token")
        if given is not None and self._is_right(given):
            rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
            there = RedirectResponse(f"{request.url.path}?{urlencode(rest)}" if rest else request.url.path, 303)
            there.set_cookie(COOKIE, given, httponly=True, samesite="strict")
            return there
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_right(request.cookies.get(COOKIE, "")) or self._is_right(bearer):
            return None
        return PlainTextResponse("no token, or a wrong one: open the address that `vcppo ui` printed\n", 401)

    def _is_right(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())
