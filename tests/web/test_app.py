"""Pages, documents, streams and changes of a simulated fleet, without a browser."""

from __future__ import annotations

import html
import json
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import documents
import pytest
import trio
from attrs import evolve
from web import ACCESS, HOST, TOKEN, ask, follow, open_site, post
from worlds import GUEST, become, open_world, simulated, supervised, view

from qmpballoon._printable import make_printable
from qmpballoon.sizes import GiB, MiB
from qmpballoon.testing import MachineConfig
from qmpballoon.web.board import VmOnBoard
from qmpballoon.web.server import Request, Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from web import Event

    from qmpballoon.web.app import App

HOSTILE = "</script><img src=x onerror=alert(1)>\u202e'\"&"


class Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.found.add(tag)


def tags_of(page: str) -> set[str]:
    parser = Tags()
    parser.feed(page)
    assert parser.found
    return parser.found


def text_of(response: Response) -> str:
    assert isinstance(response.body, bytes)
    return response.body.decode()


async def document_of(app: App, path: str) -> dict[str, Any]:
    response = await ask(app, path)
    assert (response.status, response.content_type) == (200, "application/json")
    value = json.loads(text_of(response))
    assert isinstance(value, dict)
    return value


async def next_of(events: AsyncGenerator[Event], kind: str) -> Event:
    while True:
        event = await anext(events)
        if event.kind == kind:
            return event


# Who may look


@simulated
async def test_nothing_is_shown_without_the_token() -> None:
    async with open_world() as world, supervised(world) as fleet:
        world.start("secret-vm")
        await become(fleet, {"secret-vm": "healthy"})
        async with open_site(fleet, world, allow_changes=True) as app:
            paths = [*app.pages, "/nothing"]
            assert len(paths) > 8
            for path in paths:
                answer = await app.answer(Request("GET", path, {}, {"host": HOST}))
                assert answer.status == 403, path
                assert "secret-vm" not in text_of(answer)
                assert ACCESS.change_key not in text_of(answer)
            wrong = Request("GET", "/", {"token": TOKEN[:-1]}, {"host": HOST})
            assert (await app.answer(wrong)).status == 403


@simulated
async def test_the_link_is_exchanged_for_a_strict_cookie() -> None:
    async with (
        open_world() as world,
        supervised(world) as fleet,
        open_site(fleet, world, prefix="/vms") as app,
    ):
        link = Request("GET", "/vms/", {"token": TOKEN}, {"host": HOST})
        answer = await app.answer(link)
        assert answer.status == 200
        assert TOKEN not in text_of(answer)
        cookie = dict(answer.headers)["Set-Cookie"]
        pair, *attributes = cookie.split("; ")
        assert attributes == ["Path=/vms/", "HttpOnly", "SameSite=Strict"]
        shown = {"host": HOST, "cookie": pair}
        for path in ("/vms/", "/"):
            page = await app.answer(Request("GET", path, {}, shown))
            assert page.status == 200
        moved = await app.answer(Request("GET", "/vms", {}, shown))
        assert (moved.status, dict(moved.headers)["Location"]) == (308, "/vms/")


@simulated
async def test_every_answer_has_the_strict_policy() -> None:
    async with (
        open_world() as world,
        supervised(world) as fleet,
        open_site(fleet, world) as app,
    ):
        for path in ("/", "/page.js", "/nothing", "/api/fleet"):
            headers = dict((await ask(app, path)).headers)
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none';")
            assert "unsafe" not in policy
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cache-Control"] == "no-store"
        foreign = await ask(app, "/", origin="http://evil.example")
        assert foreign.status == 403
        other = await ask(app, "/", host="evil.example")
        assert other.status == 403
        assert (await ask(app, "/", method="PUT")).status == 405


# What is shown


@simulated
async def test_pages_are_complete_without_a_script() -> None:
    async with open_world() as world, supervised(world) as fleet:
        world.start("one")
        world.add("two")
        await become(fleet, {"one": "healthy", "two": "gone"})
        async with open_site(fleet, world) as app:
            await trio.sleep(2)
            page = text_of(await ask(app, "/"))
            assert "2 VMs. The host has" in page
            assert "cache 1 GiB" in page
            assert "2 GiB of 2 GiB" in page
            assert '<td class="state gone">gone: ' in page
            vm = text_of(await ask(app, "/vm?name=one"))
            assert vm.count("<figure") == 2
            assert "Before and after" in vm
            assert 'id="changes"' not in vm
            assert ACCESS.change_key not in vm
            none = await ask(app, "/vm?name=three")
            assert none.status == 404
            assert "there is no VM 'three'" in text_of(none)


@simulated
async def test_documents_are_as_the_schema_says() -> None:
    async with open_world() as world, supervised(world) as fleet:
        world.start("vm")
        await become(fleet, {"vm": "healthy"})
        async with open_site(fleet, world, allow_changes=True) as app:
            documents.check("fleet-status", await document_of(app, "/api/fleet"))
            await trio.sleep(1)
            seen = await document_of(app, "/api/vm?name=vm")
            documents.check("web-vm", seen)
            assert seen["timeline"][-1]["actual"] == 2 * GiB
            documents.check("web-job", await document_of(app, "/api/job?vm=vm"))
            app.board.log("vm", "a text")
            listed = await document_of(app, "/api/log")
            documents.check("web-log", listed)
            assert [entry["text"] for entry in listed["entries"]] == ["a text"]


@simulated
async def test_a_hostile_name_stays_a_text() -> None:
    async with open_world() as world, supervised(world) as fleet:
        world.start(HOSTILE)
        await become(fleet, {HOSTILE: "healthy"})
        async with open_site(fleet, world, allow_changes=True) as app:
            await trio.sleep(1)
            app.board.log(HOSTILE, HOSTILE)
            shown = make_printable(HOSTILE)
            request = Request(
                "GET",
                "/vm",
                {"name": shown},
                {"host": HOST, "authorization": f"Bearer {TOKEN}"},
            )
            pages = [text_of(await ask(app, "/")), text_of(await app.answer(request))]
            events = follow(await ask(app, "/events"))
            pages.append("".join((await anext(events)).data.values()))
            await events.aclose()
            for page in pages:
                assert html.escape(shown, quote=False) in page
                assert "img" not in tags_of(page)
                assert "\u202e" not in page
            status, _ = await post(app, "/api/plan", {"vm": shown})
            assert status == 200


# Streams


@simulated
async def test_a_stream_begins_with_all_and_goes_on_with_what_changes() -> None:
    async with open_world() as world, supervised(world) as fleet:
        fake = world.start("vm")
        await become(fleet, {"vm": "healthy"})
        async with open_site(fleet, world) as app:
            events = follow(await ask(app, "/events"))
            first = await next_of(events, "parts")
            assert {"host", "log"} < first.data.keys()
            (row,) = [name for name in first.data if name.startswith("vm-")]
            fake.machine.quit()
            fake.touch()
            del world.specs["vm"]
            with trio.fail_after(60):
                while (seen := await next_of(events, "parts")).data.get(row) != "":
                    pass
            assert "is not in the fleet any more" in seen.data["log"]
            await events.aclose()


@simulated
async def test_a_reader_goes_on_where_it_has_ended() -> None:
    async with open_world() as world, supervised(world) as fleet:
        world.start("vm")
        await become(fleet, {"vm": "healthy"})
        async with open_site(fleet, world) as app:
            events = follow(await ask(app, "/api/events"))
            seen = await next_of(events, "vm")
            documents.check("web-vm-event", seen.data)
            await events.aclose()
            for text in ("one", "two"):
                app.board.log("vm", text)
            await trio.sleep(3)
            again = await ask(app, "/api/events", **{"last-event-id": seen.id})
            events = follow(again)
            for text in ("one", "two"):
                entry = await next_of(events, "entry")
                documents.check("web-entry", entry.data)
                assert entry.data["text"] == text
            await events.aclose()
            again = await ask(app, "/api/events", **{"last-event-id": entry.id})
            events = follow(again)
            app.board.log(None, "three")
            assert (await next_of(events, "entry")).data["text"] == "three"
            await events.aclose()


@pytest.mark.parametrize(
    "seen",
    ["0badcafe-7", "nonsense", "-", "0badcafe-", "{run}-" + "9" * 5000, "{run}-\xb2"],
)
@simulated
async def test_a_reader_of_another_run_begins_anew(seen: str) -> None:
    async with (
        open_world() as world,
        supervised(world) as fleet,
        open_site(fleet, world) as app,
    ):
        since = seen.format(run=app.board.run)
        events = follow(await ask(app, f"/events?since={since}"))
        assert (await anext(events)).kind == "reload"
        assert (await anext(events)).kind == "parts"
        await events.aclose()


@simulated
async def test_a_page_of_a_vm_follows_it() -> None:
    async with open_world() as world, supervised(world) as fleet:
        world.start("vm")
        await become(fleet, {"vm": "healthy"})
        async with open_site(fleet, world) as app:
            events = follow(await ask(app, "/events?vm=vm"))
            assert "charts-part" in (await next_of(events, "parts")).data
            async with fleet.borrow("vm", GiB) as balloon:
                await balloon.resize(GiB)
            with trio.fail_after(60):
                while True:
                    parts = (await next_of(events, "parts")).data
                    if (
                        "It has" in parts.get("state", "")
                        and "1 GiB of 2 GiB" in (parts["state"])
                    ):
                        break
            await events.aclose()


# Changes


@simulated
async def test_changes_are_refused_unless_they_are_allowed() -> None:
    async with open_world() as world, supervised(world) as fleet:
        world.start("vm")
        await become(fleet, {"vm": "healthy"})
        async with open_site(fleet, world) as app:
            status, said = await post(app, "/api/resize", {"vm": "vm", "size": "1G"})
            assert status == 403
            assert "--allow-changes" in said["text"]
        assert view(fleet, "vm").actual == 2 * GiB


@pytest.mark.parametrize(
    ("path", "details", "headers", "status", "why"),
    [
        ("resize", {"size": "1G"}, {"x-change-key": "no"}, 403, "token again"),
        ("resize", {"size": "1G"}, {"sec-fetch-site": "cross-site"}, 403, "again"),
        ("resize", {"size": "1G"}, {"content-type": "text/plain"}, 415, "JSON"),
        ("resize", {"size": "1G"}, {"origin": "http://evil"}, 403, "another site"),
        ("resize", {}, {}, 400, "give a size"),
        ("resize", {"size": "much"}, {}, 400, "not a size"),
        ("resize", {"size": True}, {}, 400, "must be text"),
        ("resize", {"size": 0}, {}, 400, "more than nothing"),
        ("resize", {"size": "1G", "vm": "other"}, {}, 404, "no VM 'other'"),
        ("resize", {"size": "1G", "vm": 7}, {}, 400, "name the VM"),
        ("reclaim", {"hold": "yes"}, {}, 400, "true or false"),
        ("stop", {}, {}, 409, "nothing is done"),
        ("quit", {}, {}, 404, "no such change"),
    ],
)
@simulated
async def test_a_change_that_is_no_good(
    path: str, details: dict[str, Any], headers: dict[str, str], status: int, why: str
) -> None:
    async with open_world() as world, supervised(world) as fleet:
        world.start("vm")
        await become(fleet, {"vm": "healthy"})
        async with open_site(fleet, world, allow_changes=True) as app:
            found, said = await post(
                app, f"/api/{path}", {"vm": "vm"} | details, **headers
            )
            assert (found, why in said["text"]) == (status, True), said
            assert app.jobs is not None
            assert app.jobs.find("vm") is None


@simulated
async def test_a_vm_that_cannot_be_shown_ends_no_fleet(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OverflowError("figures that cannot be")

    async with open_world() as world, supervised(world) as fleet:
        world.start("vm")
        await become(fleet, {"vm": "healthy"})
        async with open_site(fleet, world) as app:
            with monkeypatch.context() as patch:
                patch.setattr(VmOnBoard, "note", fail)
                await trio.sleep(5)
            assert caplog.text.count("figures that cannot be") == 1
            tick = app.board.tick
            await trio.sleep(5)
            assert app.board.tick > tick


@simulated
async def test_a_vm_with_an_odd_name_that_comes_back_is_followed_again() -> None:
    """The page of the one before is not kept for it."""
    name = "vm\x1b"
    async with open_world() as world, supervised(world) as fleet:
        world.start(name)
        await become(fleet, {name: "healthy"})
        async with open_site(fleet, world) as app:
            board, there = app.board, fleet.list_views()
            path = r"/events?vm=vm\x1b"
            first = follow(await ask(app, path))
            await anext(first)
            # So many go that it has no page any more.
            board.note([evolve(there[0], name=f"{number}") for number in range(60)])
            board.note([])
            board.note(there)
            again = follow(await ask(app, path))
            assert "not in the fleet" not in (await anext(again)).data["state"]
            await first.aclose()
            await again.aclose()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 10_000, b"\xff"])
@simulated
async def test_a_change_that_is_no_object(body: bytes) -> None:
    async with (
        open_world() as world,
        supervised(world) as fleet,
        open_site(fleet, world, allow_changes=True) as app,
    ):
        assert (await post(app, "/api/stop", body))[0] == 400


async def wait_for_job(app: App, state: str) -> dict[str, Any]:
    with trio.fail_after(120):
        while True:
            job = (await document_of(app, "/api/job?vm=vm"))["job"]
            if job["state"] == state:
                documents.check("web-job", {"job": job})
                return dict(job)
            await trio.sleep(0.1)


@simulated
async def test_a_reclaim_from_plan_to_giving_back() -> None:
    said: list[str] = []
    async with open_world() as world, supervised(world) as fleet:
        world.start("vm")
        await become(fleet, {"vm": "healthy"})
        async with open_site(
            fleet, world, allow_changes=True, on_change=said.append
        ) as app:
            status, plan = await post(app, "/api/plan", {"vm": "vm", "amount": "25%"})
            assert status == 200
            documents.check("web-plan", plan)
            assert plan["plan"]["amount"] == GiB // 2
            assert plan["text"].startswith("512 MiB can be taken")
            details = {"vm": "vm", "amount": "25%", "hold": True}
            status, begun = await post(app, "/api/reclaim", details)
            assert status == 202
            documents.check("web-begun", begun)
            with trio.fail_after(60):
                while True:
                    job = (await document_of(app, "/api/job?vm=vm"))["job"]
                    if job["progress"]:
                        break
                    await trio.sleep(0.05)
            documents.check("web-job", {"job": job})
            # Others who move it are kept out meanwhile.
            assert view(fleet, "vm").target is not None
            status, busy = await post(app, "/api/resize", {"vm": "vm", "size": "1G"})
            assert (status, "stop it first" in busy["text"]) == (409, True)
            done = await wait_for_job(app, "done")
            assert done["report"]["held"] is True
            assert view(fleet, "vm").actual == 2 * GiB - GiB // 2
            seen = (await document_of(app, "/api/vm?name=vm"))["timeline"]
            assert min(sample["actual"] for sample in seen) == 2 * GiB - GiB // 2
            assert {sample["target"] for sample in seen} >= {None, 2 * GiB - GiB // 2}
            await trio.sleep(5)
            assert (await post(app, "/api/give-back", {"vm": "vm"}))[0] == 202
            await wait_for_job(app, "done")
            assert view(fleet, "vm").actual == 2 * GiB
    took = f"{done['report']['seconds']:.1f} s"
    assert [line.split(":")[1].strip() for line in said] == [
        "asked for",
        f"requested 512 MiB, handed over 512 MiB in {took}, held; done",
        *("asked for", "reached"),
    ]


SLOW = evolve(GUEST, inflate_rate=20 * MiB, deflate_rate=200 * MiB)


@simulated
async def test_a_reclaim_that_is_stopped_gives_the_memory_back() -> None:
    async with open_world() as world, supervised(world) as fleet:
        world.start("vm", MachineConfig(guest=SLOW))
        await become(fleet, {"vm": "healthy"})
        async with open_site(fleet, world, allow_changes=True) as app:
            details = {"vm": "vm", "amount": "1G", "hold": True}
            assert (await post(app, "/api/reclaim", details))[0] == 202
            await trio.sleep(5)
            assert (view(fleet, "vm").actual or 0) < 2 * GiB
            assert (await post(app, "/api/stop", {"vm": "vm"}))[0] == 200
            stopped = await wait_for_job(app, "stopped")
            assert stopped["report"] is None
            await trio.sleep(5)
            assert view(fleet, "vm").actual == 2 * GiB


@simulated
async def test_the_end_of_the_server_gives_the_memory_back() -> None:
    async with open_world() as world, supervised(world) as fleet:
        world.start("vm", MachineConfig(guest=SLOW))
        await become(fleet, {"vm": "healthy"})
        async with open_site(fleet, world, allow_changes=True) as app:
            await post(app, "/api/reclaim", {"vm": "vm", "amount": "1G", "hold": True})
            await trio.sleep(5)
            assert (view(fleet, "vm").actual or 0) < 2 * GiB
        await trio.sleep(5)
        assert view(fleet, "vm").actual == 2 * GiB


@simulated
async def test_a_size_below_the_floor_is_refused_before_anything_is_sent() -> None:
    async with open_world() as world, supervised(world) as fleet:
        world.start("vm")
        world.add("vm", floor="1GiB")
        await become(fleet, {"vm": "healthy"})
        async with open_site(fleet, world, allow_changes=True) as app:
            assert (await post(app, "/api/resize", {"vm": "vm", "size": "1M"}))[
                0
            ] == 202
            failed = await wait_for_job(app, "failed")
            assert "below the floor of 1 GiB" in failed["text"]
            assert view(fleet, "vm").actual == 2 * GiB


@simulated
async def test_a_vm_that_ends_ends_its_job() -> None:
    async with open_world() as world, supervised(world) as fleet:
        fake = world.start("vm", MachineConfig(guest=SLOW))
        await become(fleet, {"vm": "healthy"})
        async with open_site(fleet, world, allow_changes=True) as app:
            assert (await post(app, "/api/reclaim", {"vm": "vm"}))[0] == 202
            await trio.sleep(3)
            fake.machine.quit()
            fake.touch()
            await wait_for_job(app, "failed")
            await become(fleet, {"vm": "gone"})
            assert (await post(app, "/api/reclaim", {"vm": "vm"}))[0] == 202
            assert "not connected" in (await wait_for_job(app, "failed"))["text"]
