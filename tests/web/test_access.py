"""Who may look, and who may change something."""

from __future__ import annotations

import pytest
from attrs import evolve

from qmpballoon._transport.http_hosts import KnownHosts
from qmpballoon.web.access import CHANGE_HEADER, Access

TOKEN = "x" * 43
ACCESS = Access(TOKEN, KnownHosts.of("127.0.0.1", ["vms.example.com"]))
COOKIE = {"cookie": f"other=1; {ACCESS.cookie_name}={ACCESS.cookie}"}
KEY = {CHANGE_HEADER: ACCESS.change_key}


@pytest.mark.parametrize("host", ["127.0.0.1:9730", "LOCALHOST", "[::1]:1"])
def test_its_own_hosts_are_known(host: str) -> None:
    assert ACCESS.explain_refusal({"host": host}) is None


@pytest.mark.parametrize("host", ["evil.example", "10.0.0.1", "127.0.0.1.evil", ""])
def test_a_name_that_somebody_lets_point_here_is_refused(host: str) -> None:
    assert "--allow-host" in str(ACCESS.explain_refusal({"host": host}))


@pytest.mark.parametrize(
    "origin",
    [
        *("http://evil.example", "null", "http://127.0.0.1:9731", "http://[", ""),
        "http://vms.example.com.evil",
    ],
)
def test_a_page_of_another_site_is_refused(origin: str) -> None:
    headers = {"host": "127.0.0.1:9730", "origin": origin}
    assert "another site" in str(ACCESS.explain_refusal(headers))


def test_a_page_of_its_own_is_let_in_also_behind_a_proxy_with_tls() -> None:
    headers = {"host": "vms.example.com", "origin": "https://vms.example.com"}
    assert ACCESS.explain_refusal(headers) is None


@pytest.mark.parametrize(
    ("headers", "may_look", "may_change"),
    [
        ({}, False, False),
        (COOKIE, True, False),
        (KEY, False, False),
        (COOKIE | KEY, True, True),
        (COOKIE | KEY | {"sec-fetch-site": "same-origin"}, True, True),
        (COOKIE | KEY | {"sec-fetch-site": "same-site"}, True, False),
        (COOKIE | KEY | {"sec-fetch-site": "cross-site"}, True, False),
        (COOKIE | {CHANGE_HEADER: ACCESS.cookie}, True, False),
        ({"authorization": f"Bearer {TOKEN}"}, True, True),
        ({"authorization": f"Basic {TOKEN}"}, False, False),
        ({"authorization": "Bearer "}, False, False),
        ({"authorization": f"Bearer {ACCESS.cookie}"}, False, False),
        ({"authorization": "Bearer \xe9"}, False, False),
        ({"cookie": f"{ACCESS.cookie_name}={TOKEN}"}, False, False),
        ({"cookie": "[[=;=,\x00"}, False, False),
        # Other servers of this machine have set these.
        ({"cookie": f'seen={{"a": 1}}; {COOKIE["cookie"]}'}, True, False),
        ({"cookie": f"{COOKIE['cookie']}; {ACCESS.cookie_name}=theirs"}, True, False),
    ],
)
def test_what_a_request_has_to_show(
    headers: dict[str, str], may_look: bool, may_change: bool
) -> None:
    assert ACCESS.may_look(headers) is may_look
    assert ACCESS.may_change(headers) is may_change


def test_each_token_has_its_own_secrets_and_none_tells_another() -> None:
    other = evolve(ACCESS, token="y" * 43)
    secrets = [
        secret
        for access in (ACCESS, other)
        for secret in (access.token, access.cookie, access.change_key)
    ]
    assert len(set(secrets)) == len(secrets)
    assert ACCESS.cookie_name != other.cookie_name
    assert TOKEN not in repr(ACCESS)
