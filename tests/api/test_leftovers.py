"""A client is sent what QEMU still had to tell one before it, on every front end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from frontends import CONNECTING, on_each
from scripted import GREETING, attend, serve

from qmpballoon import MonitorTimeout
from qmpballoon.qmp import Return

if TYPE_CHECKING:
    from frontends import FrontEnd
    from scripted import Session


@on_each(*CONNECTING)
def test_answers_to_an_earlier_client_are_passed_over(front: FrontEnd) -> None:
    def script(session: Session) -> None:
        greeting = session.qmp.send_greeting(GREETING)
        others = b"".join(
            session.qmp.send_reply(Return({"actual": 1}, ident))
            for ident in range(1, 6)
        )
        session.sock.sendall(others + greeting + others)
        session.answer(session.request(), {})
        attend(session)

    async def main(path: str) -> None:
        async with front.open_balloon(path) as balloon:
            assert (await balloon.query()).actual == 1 << 30

    with serve(script) as path:
        front.run(main(path))


@on_each(*CONNECTING)
def test_a_peer_that_answers_without_ids_is_told_from_one_that_is_silent(
    front: FrontEnd,
) -> None:
    def script(session: Session) -> None:
        session.sock.sendall(session.qmp.send_greeting(GREETING))
        session.request()
        session.sock.sendall(session.qmp.send_reply(Return({})))
        session.request()

    async def main(path: str) -> None:
        with pytest.raises(MonitorTimeout, match="sent a reply, but none to ours"):
            async with front.open_balloon(path, timeout=1):
                pytest.fail("it opened")

    with serve(script) as path:
        front.run(main(path))
