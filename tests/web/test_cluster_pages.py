"""The page of a cluster: its hosts on a simulated server, without a browser."""

from __future__ import annotations

import html
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import documents
import pytest
import trio
from attrs import evolve
from clusters import EPOCH, MemoryStore, SimulatedHost, make_agent, make_guest, now
from web import ACCESS, HOST, TOKEN, ask, follow
from worlds import simulated

from qmpballoon.cluster.bus import POLICY_KEY, make_state_key
from qmpballoon.cluster.documents import HostState, JobProgress, Offer, Policy, Room
from qmpballoon.cluster.jobs import plan_job, start_job
from qmpballoon.cluster.memory import MemoryServer
from qmpballoon.cluster.view import ClusterView, HostView
from qmpballoon.sizes import GiB
from qmpballoon.web.cluster_board import ClusterBoard
from qmpballoon.web.cluster_pages import format_cluster_page
from qmpballoon.web.server import Request
from qmpballoon.web.service import open_cluster_app

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qmpballoon.cluster.agent import Agent
    from qmpballoon.web.cluster_app import ClusterApp

HOSTILE = "</td><script>alert(1)</script><img src=x>\u202e'\"&\x1b[2J"
LARGEST = 2**63 - 1


@asynccontextmanager
async def open_site(
    server: MemoryServer, *names: str
) -> AsyncGenerator[tuple[ClusterApp, dict[str, Agent]]]:
    """Have hosts with two guests each, and an app that shows them."""
    guests = [make_guest(name, available=3 * GiB, free=GiB) for name in ("a", "b")]
    agents = {
        name: make_agent(
            server,
            name,
            SimulatedHost({guest.name: guest for guest in guests}),
            MemoryStore(),
        )
        for name in names
    }
    async with trio.open_nursery() as nursery:
        for agent in agents.values():
            await nursery.start(agent.run)
        await trio.sleep(1)
        bus = server.connect("viewer")
        async with open_cluster_app(bus, ACCESS, clock=now) as app:
            yield app, agents
        nursery.cancel_scope.cancel()


async def read(app: ClusterApp, path: str = "/") -> str:
    response = await ask(app, path)
    assert response.status == 200, response.body
    assert isinstance(response.body, bytes)
    return response.body.decode()


def texts(app: ClusterApp) -> list[str]:
    return [entry.text for entry in app.board.entries]


@simulated
async def test_all_hosts_are_shown_and_nothing_without_the_token() -> None:
    async with open_site(MemoryServer(), "h1", "h2") as (app, _):
        page = await read(app)
        assert "2 hosts: 2 healthy. They have " in page
        assert "with 4 VMs. Their guests can give " in page
        assert "The server has no policy. " in page
        assert '<td class="state healthy">healthy</td>' in page
        assert 'aria-label="used 8 GiB, above the reserve' in page
        for path in [*app.pages, "/nothing"]:
            answer = await app.answer(Request("GET", path, {}, {"host": HOST}))
            assert answer.status == 403, path
            assert b"healthy" not in answer.body  # type: ignore[operator]
        seen = json.loads(await read(app, "/api/cluster"))
        documents.check("cluster-status", seen)
        assert [host["name"] for host in seen["hosts"]] == ["h1", "h2"]
        documents.check("web-log", json.loads(await read(app, "/api/log")))
        headers = {"host": HOST, "authorization": f"Bearer {TOKEN}"}
        post = Request("POST", "/api/reclaim", {}, headers, b"{}")
        assert (await app.answer(post)).status == 403


@simulated
async def test_a_host_that_is_cut_off_is_silent_then_gone_and_comes_back() -> None:
    server = MemoryServer()
    async with open_site(server, "h1", "h2") as (app, _):
        events = follow(await ask(app, "/events"))
        first = await anext(events)
        assert {"cluster", "problem", "job", "log"} < first.data.keys()
        server.cut_off = {"h2"}
        seen = ""
        with trio.fail_after(300):
            while "gone: not heard of for 2 min" not in seen:
                parts = (await anext(events)).data
                seen = parts.get("host-2", "")
                assert "host-1" not in parts, "what is the same is not sent again"
            server.cut_off = set()
            while "healthy" not in seen:
                seen = (await anext(events)).data.get("host-2", "")
        await events.aclose()
        assert texts(app) == ["h2 is silent", "h2 is gone", "h2 is healthy"]


@simulated
async def test_an_emptied_server_makes_no_host_gone() -> None:
    server = MemoryServer()
    async with open_site(server, "h1", "h2") as (app, _):
        server.empty()
        await trio.sleep(10)
        assert "2 hosts: 2 healthy" in await read(app)
        assert texts(app) == []


@simulated
async def test_a_server_that_cannot_be_asked_is_told_and_what_is_shown_is_old() -> None:
    server = MemoryServer(is_down=True)
    async with open_site(server, "h1") as (app, _):
        page = await read(app)
        assert "Nothing is known of its hosts yet." in page
        assert "What is shown is old: the server refuses connections" in page
        assert (await ask(app, "/api/cluster")).status == 503
        server.is_down = False
        await trio.sleep(10)
        page = await read(app)
        assert '<p id="problem"></p>' in page
        assert "1 host: 1 healthy" in page
        assert "the server can be asked again" in texts(app)
        server.is_stopped = True
        await trio.sleep(10)
        assert (await ask(app, "/api/cluster")).status == 503
        assert "h1" in await read(app)


@simulated
async def test_a_job_is_shown_while_it_goes_on() -> None:
    server = MemoryServer()
    async with open_site(server, "h1", "h2") as (app, _):
        assert app.board.view is not None
        job = plan_job(app.board.view, 4 * GiB, now(), hold=True).job
        bus = server.connect("operator")
        await start_job(bus, job, now())
        seen: list[str] = []
        with trio.fail_after(60):
            while not (seen and "2 of 2 hosts are ready" in seen[-1]):
                await trio.sleep(1)
                seen.append(await read(app))
        assert any('aria-label="Progress of h1"' in page for page in seen)
        assert any(f"Job {job.id}: " in page for page in seen)
        assert "holding 2 GiB of 2 GiB" in seen[-1]
        said = [text for text in texts(app) if job.id in text]
        assert said[-1] == f"job {job.id}: 4 GiB of 4 GiB; 2 of 2 hosts are ready"


STATE = HostState("h1", EPOCH, 64 * GiB, 32 * GiB, GiB)


@pytest.mark.parametrize(
    "state",
    [
        evolve(STATE, notes=(HOSTILE,) * 16),
        evolve(STATE, progress=JobProgress("0" * 8, 1, 9, "taking", 2**39, HOSTILE)),
        evolve(STATE, available=0),
        evolve(STATE, total=0, available=-LARGEST, reserve=LARGEST),
        evolve(STATE, total=1, room=Room(*[LARGEST] * 3), offer=Offer(*[LARGEST] * 3)),
        evolve(STATE, at=2.0**39, unknown_vms=LARGEST, vms=LARGEST),
        evolve(STATE, at=0.0, policy_revision=LARGEST),
        evolve(STATE, name="other"),
    ],
    ids=range(8),
)
@simulated
async def test_whatever_a_host_says_is_shown_as_a_text(state: HostState) -> None:
    server = MemoryServer()
    server.put(make_state_key("h1"), state.to_bytes())
    server.put(make_state_key("h2"), HOSTILE.encode())
    server.put(make_state_key("<h3>"), STATE.to_bytes())
    server.put(POLICY_KEY, Policy(1, comment=HOSTILE).to_bytes())
    async with open_site(server) as (app, _):
        page = await read(app)
        assert "2 hosts: " in page
        assert ">h2<" in page
        assert "malformed: " in page
        assert html.escape("</td><script>alert(1)", quote=False) in page
        assert "<img" not in page
        assert "&lt;h3" not in page
        assert ("none of" in page) == (state.available <= 0)
        assert not {"\u202e", "\x1b"} & set(page)
        documents.check("cluster-status", json.loads(await read(app, "/api/cluster")))


def make_board() -> ClusterBoard:
    return ClusterBoard(wall_clock=now)


def make_view(count: int, **figures: float) -> ClusterView:
    hosts = [
        HostView(f"h{number:05}", evolve(STATE, vms=number), age=figures.get("age", 0))
        for number in range(count)
    ]
    return ClusterView(tuple(hosts))


@simulated
async def test_what_many_hosts_do_at_once_is_one_line() -> None:
    board = make_board()
    board.note(make_view(100))
    board.note(make_view(100, age=7))
    (entry,) = board.entries
    assert (
        entry.text == "h00000, h00001, h00002, h00003, h00004 and 95 others are silent"
    )


@simulated
async def test_of_too_many_hosts_those_that_are_not_well_are_shown() -> None:
    board = make_board()
    many = make_view(3000)
    last = evolve(many.hosts[-1], age=9.0)
    board.note(evolve(many, hosts=(*many.hosts[:-1], last)))
    page = format_cluster_page(board)
    assert page.count('<tr id="host-') == 2000
    assert "3000 hosts: 2999 healthy, 1 silent. 1000 healthy ones are not shown" in page
    assert "h02999" in page


@simulated
async def test_hosts_that_are_gone_are_forgotten_in_the_end() -> None:
    board = make_board()
    board.note(make_view(2500))
    await trio.sleep(60)
    board.note(make_view(1))
    assert len(board.hosts) == 1 + 1000
    await trio.sleep(3600)
    board.note(make_view(1))
    assert list(board.hosts) == ["h00000"]


@simulated
async def test_a_new_host_and_a_new_policy_are_told() -> None:
    board = make_board()
    board.note(make_view(1))
    board.note(evolve(make_view(2), policy=Policy(7, comment="the night")))
    assert [entry.text for entry in board.entries] == [
        "h00001 is healthy",
        "The policy is revision 7 (the night)",
    ]
