"""Who may look at the pages, and who may change something: pure.

A server has one token, which is part of its link. Whoever sends it gets a cookie, and
may look. The cookie is a different secret from the token: whoever learns the cookie
cannot make a link of it. A browser sends the cookie with every request. So a change
needs a further key, which is on the pages, and which no other site can read or send. A
program sends the token with each request (``Authorization: Bearer TOKEN``), for both.

The browser's own rules are the second line of defence: the cookie is sent only with
requests from our pages (``SameSite=Strict``), no script can read it (``HttpOnly``), and
requests that come from elsewhere (``Origin``, ``Sec-Fetch-Site``) are refused.

Source: RFC 6265bis, "Cookies"; W3C, "Fetch Metadata Request Headers".
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpballoon._transport.http_hosts import KnownHosts

__all__ = ["CHANGE_HEADER", "Access"]

CHANGE_HEADER: Final = "x-change-key"
"""The header that holds the key of the pages, in small letters."""
_OURS: Final = ("same-origin", "none")  # of Sec-Fetch-Site: a page of ours, or a person


@frozen
class Access:
    """What a request has to show.

    Attributes:
        token: The secret that the link holds.
        hosts: The hosts that requests may be for.
    """

    token: str = field(repr=False)
    hosts: KnownHosts

    @property
    def cookie_name(self) -> str:
        """The cookie's name. All servers of a machine share its cookies."""
        return f"qmpballoon-{self._derive('name')[:8]}"

    @property
    def cookie(self) -> str:
        """The cookie's value."""
        return self._derive("look")

    @property
    def change_key(self) -> str:
        """What changes need besides the cookie; it stands on the pages."""
        return self._derive("change")

    def explain_refusal(self, headers: Mapping[str, str]) -> str | None:
        """Say why a request is refused by where it comes from; ``None``: it is not.

        Args:
            headers: Its headers; their names in small letters.
        """
        host = headers.get("host", "")
        if not self.hosts.has(host):
            return "this is not a name of this server: allow it with --allow-host"
        origin = headers.get("origin")
        if origin is not None and _read_host(origin) != host.lower():
            return "the request comes from a page of another site"
        return None

    def is_token(self, token: str) -> bool:
        """Tell whether a text is the token."""
        return _are_equal(token, self.token)

    def may_look(self, headers: Mapping[str, str]) -> bool:
        """Tell whether a request shows the token, or the cookie."""
        return self._has_token(headers) or self._has_cookie(headers)

    def may_change(self, headers: Mapping[str, str]) -> bool:
        """Tell whether a request shows what a change needs."""
        if self._has_token(headers):
            return True
        is_ours = headers.get("sec-fetch-site", "same-origin") in _OURS
        key = headers.get(CHANGE_HEADER, "")
        return (
            is_ours and self._has_cookie(headers) and _are_equal(key, self.change_key)
        )

    def _has_token(self, headers: Mapping[str, str]) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and self.is_token(token.strip())

    def _has_cookie(self, headers: Mapping[str, str]) -> bool:
        # Not by http.cookies: one cookie of another server of this machine that is
        # malformed, or has the same name, would hide ours.
        pairs = [
            pair.strip().partition("=") for pair in headers.get("cookie", "").split(";")
        ]
        return any(
            name == self.cookie_name and _are_equal(value, self.cookie)
            for name, _, value in pairs
        )

    def _derive(self, what: str) -> str:
        """Return a secret that tells nothing of the token."""
        key, text = self.token.encode(), f"qmpballoon {what}".encode()
        return hmac.new(key, text, hashlib.sha256).hexdigest()


def _are_equal(one: str, other: str) -> bool:
    """Compare in a time that does not tell how much of it is right."""
    return hmac.compare_digest(
        one.encode("utf-8", "surrogateescape"), other.encode("utf-8", "surrogateescape")
    )


def _read_host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
