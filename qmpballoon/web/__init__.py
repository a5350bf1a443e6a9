"""Pages in a browser: all VMs of a host, live, and changes if they are allowed.

:func:`open_pages` serves a supervised fleet (:func:`qmpballoon.fleet.open_fleet`): a
page with a table of all VMs, a page for each, the same as JSON documents, and streams
of both that resume where a reader has left off. It needs h11, from the extra ``web``.
:func:`open_cluster_pages` serves a page of all hosts of a cluster
(:mod:`qmpballoon.cluster`). The command is ``qmpballoon web``.
"""

from __future__ import annotations

from qmpballoon.web.access import Access
from qmpballoon.web.board import Board
from qmpballoon.web.service import open_cluster_pages, open_pages

__all__ = ["Access", "Board", "open_cluster_pages", "open_pages"]
