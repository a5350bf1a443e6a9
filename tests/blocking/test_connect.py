"""Opening a monitor in blocking code."""

from __future__ import annotations

import socket
import ssl

import pytest
import trustme
from scripted import Session, attend, serve, standard_answer

from qmpballoon import (
    MonitorUnreachable,
    blocking,
)


def test_tls() -> None:
    authority = trustme.CA()
    ours, theirs = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
    )
    authority.configure_trust(ours)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)

    def script(session: Session) -> None:
        with theirs.wrap_socket(session.sock, server_side=True) as session.sock:
            session.greet()
            while (request := session.request()).command != "large":
                session.answer(request, standard_answer(request))
            session.answer(request, "x" * 1_000_000)
            attend(session)

    with serve(script, family=socket.AF_INET) as place:
        with blocking.open_balloon(place, tls=ours) as balloon:
            assert balloon.actual() == 1 << 30
            assert balloon.monitor.execute("large") == "x" * 1_000_000
        with (
            pytest.raises(MonitorUnreachable, match="no TLS handshake"),
            blocking.open_balloon(place, tls=ssl.create_default_context()),
        ):
            pytest.fail("an unknown authority was trusted")
