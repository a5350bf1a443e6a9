"""Requests to an app that is served to nobody, and what its streams say."""

from __future__ import annotations

import json
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from qmpballoon._transport.http_hosts import KnownHosts
from qmpballoon.web.access import CHANGE_HEADER, Access
from qmpballoon.web.server import Request, Response
from qmpballoon.web.service import open_app

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from worlds import World

    from qmpballoon.fleet.supervisor import Supervisor
    from qmpballoon.web.app import App
    from qmpballoon.web.cluster_app import ClusterApp

__all__ = ["ACCESS", "HOST", "TOKEN", "Event", "ask", "follow", "open_site", "post"]

TOKEN: Final = "the-token-of-this-test-is-not-secret"  # noqa: S105 - so it is
ACCESS: Final = Access(TOKEN, KnownHosts.of("127.0.0.1"))
HOST: Final = "127.0.0.1:9730"


@asynccontextmanager
async def open_site(
    fleet: Supervisor,
    world: World,
    **options: Any,  # noqa: ANN401 - open_app's own
) -> AsyncGenerator[App]:
    """Have an app for a fleet of a simulated world."""

    def read_fleet() -> dict[str, object]:
        host = world.read(fleet.held, fleet.promised)
        return {
            "vms": [view.to_json() for view in fleet.list_views()],
            "refused": [],
            "host": {
                "total": host.total,
                "available": host.available,
                "reserve": 0,
                "reserve_hard": 0,
                "buffer": 0,
                "promised": host.promised,
                "pressed": False,
                "notes": [],
            },
        }

    async with open_app(fleet, ACCESS, read_fleet, **options) as app:
        yield app


async def ask(
    app: App | ClusterApp, path: str, *, method: str = "GET", **headers: str
) -> Response:
    """Ask as a program that has the token."""
    shown = {"host": HOST, "authorization": f"Bearer {TOKEN}", **headers}
    path, _, query = path.partition("?")
    pairs = dict(pair.split("=", 1) for pair in query.split("&") if pair)
    return await app.answer(Request(method, path, pairs, shown))


async def post(
    app: App, path: str, details: object, **headers: str
) -> tuple[int, dict[str, Any]]:
    """Ask for a change as a page does; return the status, and the document."""
    shown = {
        "host": HOST,
        "cookie": f"{ACCESS.cookie_name}={ACCESS.cookie}",
        "content-type": "application/json",
        CHANGE_HEADER: ACCESS.change_key,
        **headers,
    }
    body = details if isinstance(details, bytes) else json.dumps(details).encode()
    answer = await app.answer(Request("POST", path, {}, shown, body))
    assert isinstance(answer.body, bytes)
    is_json = answer.content_type == "application/json"
    text = answer.body.decode()
    return answer.status, json.loads(text) if is_json else {"text": text}


@frozen
class Event:
    """An event of a stream: its kind, its number, and its data."""

    kind: str
    id: str
    data: Any


async def follow(response: Response) -> AsyncGenerator[Event]:
    """Read the events of a stream."""
    assert response.content_type == "text/event-stream"
    assert not isinstance(response.body, bytes)
    async with aclosing(response.body) as pieces:
        async for piece in pieces:
            for block in piece.decode().split("\n\n"):
                lines = dict(line.split(": ", 1) for line in block.splitlines())
                if "event" in lines:
                    data = json.loads(lines["data"])
                    yield Event(lines["event"], lines.get("id", ""), data)
