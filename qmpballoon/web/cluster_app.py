"""Answers requests on the hosts of a cluster. Nothing can be changed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

from qmpballoon.web.cluster_board import ClusterBoard
from qmpballoon.web.cluster_pages import draw_cluster_parts, format_cluster_page
from qmpballoon.web.parts import write_parts
from qmpballoon.web.site import Refused, Site, send, send_page, write_html

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmpballoon.web.server import Request, Response

__all__ = ["ClusterApp"]


@define(kw_only=True)
class ClusterApp(Site[ClusterBoard]):
    """Answers requests on the hosts of a cluster."""

    @property
    def pages(self) -> dict[str, Callable[[Request], Response]]:
        """See :attr:`Site.pages`."""
        return {
            "/": lambda _: send_page(format_cluster_page(self.board)),
            "/events": self._open_events,
            "/api/cluster": lambda _: self._send_cluster(),
            "/api/log": lambda _: send(self.board.list_entries()),
        }

    def _open_events(self, request: Request) -> Response:
        """Open the stream of the page: the parts that change, as HTML."""
        board = self.board
        page = board.get_page("cluster", lambda: write_parts(draw_cluster_parts(board)))
        return self.stream(request, page, write_html)

    def _send_cluster(self) -> Response:
        board = self.board
        if board.view is None or board.problem:
            raise Refused(503, board.problem or "the server has not answered yet")
        return send(board.view.to_json())
