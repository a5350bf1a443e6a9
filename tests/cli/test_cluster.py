"""``qmpballoon cluster``, and what ``fleet run --cluster`` adds, on a real server."""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import TYPE_CHECKING

import documents
import pytest
import trio
from command import FAST, actual, serve, start, until
from in_process import only_line, status_of
from rich.console import Console
from valkey_server import run_server

from qmpballoon.cli.render.cluster import draw_cluster
from qmpballoon.cluster.documents import HostState, JobProgress, JobRecord, Offer
from qmpballoon.cluster.store import Store
from qmpballoon.cluster.valkey import open_bus
from qmpballoon.cluster.view import ClusterView, HostView, look
from qmpballoon.sizes import GiB, MiB

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def url(joined: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name the server by the environment, as people do."""
    monkeypatch.setenv("QMPBALLOON_CLUSTER", joined)
    return joined


@pytest.mark.usefixtures("url")
def test_hosts_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("cluster", "status") == 0
    said = capsys.readouterr().out
    assert said.startswith("1 host: 1 healthy\n")
    assert "with 1 VM\n" in said
    assert "\n h1    healthy" in said


@pytest.mark.usefixtures("url")
def test_room_is_found_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("cluster", "room", "1M") == 0
    assert "1 of 1 hosts have it now" in capsys.readouterr().out
    assert status_of("cluster", "room", "100T") == 3
    assert capsys.readouterr().out.rstrip().endswith("none")


@pytest.mark.usefixtures("url")
def test_a_policy_is_checked_applied_and_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('comment = "more"\n[[wish]]\nhosts = "h1"\nreserve = "3MiB"\n')
    assert status_of("cluster", "policy", "check", file) == 0
    checked = capsys.readouterr().out
    assert '+reserve = "3MiB"' in checked
    assert status_of("cluster", "policy", "apply", file) == 0
    applied = capsys.readouterr().out
    assert applied.startswith(checked)
    assert applied.endswith("is applied.\n")
    assert status_of("cluster", "policy", "show") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# revision ")
    file.write_text(shown)  # what is shown is a policy
    assert status_of("cluster", "policy", "check", file) == 0
    assert capsys.readouterr().out == "Nothing changes but the revision.\n"
    while True:
        assert status_of("cluster", "status", "--json") == 0
        (host,) = json.loads(capsys.readouterr().out)["hosts"]
        if host["host"]["reserve"] == 3 * MiB:
            break


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[wish", "is no TOML"),
        ("wish = 1", "wish must be a list"),
        ('[[wish]]\nhosts = "*"\nreserv = "1G"', "'reserv' is unknown"),
        ('[[wish]]\nhosts = "*"\nreserve = "much"', "reserve: "),
        ("wish = " + "[" * 100_000, "is nested too deep"),
    ],
)
def test_a_malformed_policy_is_refused(
    tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    assert status_of("cluster", "policy", "apply", file) == 2
    assert words in only_line(capsys)


def wait_for_offer(capsys: pytest.CaptureFixture[str]) -> None:
    """Wait until the host says that its guest can give something, again."""
    offer: dict[str, int] = {}
    while sum(offer.values()) < 64 * MiB:
        assert status_of("cluster", "status", "--json") == 0
        (host,) = json.loads(capsys.readouterr().out)["hosts"]
        offer = host["offer"]


@pytest.mark.usefixtures("url")
def test_memory_is_taken_as_the_dry_run_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wait_for_offer(capsys)
    assert status_of("cluster", "reclaim", "16M", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert status_of("cluster", "reclaim", "16M", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    (planned,), (host,) = plan["hosts"], report["hosts"]
    assert planned["quota"] == host["quota"] == report["handed_over"] == 16 * MiB
    assert host["phase"] == "done"
    wait_for_offer(capsys)
    assert status_of("cluster", "reclaim", "16M") == 0
    assert "Took 16 MiB of 16 MiB from 1 host" in capsys.readouterr().out


def test_what_is_held_is_given_back_when_that_is_wanted(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_for_offer(capsys)
    hold = ("cluster", "reclaim", "16M", "--hold", "--within", "24h")
    assert status_of(*hold) == 0
    assert "the guests keep to it until" in capsys.readouterr().out
    assert status_of(*hold) == 6
    assert "goes on, for 16 MiB" in capsys.readouterr().err
    with socket.socket(socket.AF_UNIX) as server:  # it loses the job
        server.connect(url.removeprefix("unix://"))
        server.sendall(b"DEL qb:job\r\n")
        assert server.recv(100) == b":1\r\n"
    assert status_of("cluster", "reclaim", "--end") == 6
    assert "has lost the job of h1" in only_line(capsys)
    assert status_of(*hold) == 0
    capsys.readouterr()
    assert status_of("cluster", "reclaim", "--end", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    documents.check("cluster-reclaim", document)
    assert [host["phase"] for host in document["hosts"]] == ["done"]


@pytest.mark.usefixtures("url")
def test_what_nobody_offers_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    wait_for_offer(capsys)
    assert status_of("cluster", "reclaim", "100T", "--dry-run") == 3
    assert "are offered by nobody" in capsys.readouterr().out
    assert status_of("cluster", "reclaim", "1M", "--hosts", "none*", "--json") == 6
    said = capsys.readouterr()
    assert "no host offers anything" in said.err
    document = json.loads(said.out)
    documents.check("cluster-reclaim", document)
    assert (document["requested"], document["hosts"]) == (MiB, [])


JOB = ("cluster", "reclaim", "--cluster", "valkey://bus")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("cluster", "status"), "Missing option '--cluster'"),
        (
            ("cluster", "status", "--cluster", "valkey://u:S3cret@bus"),
            "holds a password",
        ),
        (JOB, "give SIZE"),
        ((*JOB, "1G", "--end"), "give SIZE"),
        ((*JOB, "--end", "--dry-run"), "no --dry-run"),
        ((*JOB, "4095"), "give 4K"),
        ((*JOB, "1G", "--within", "1e30"), "a week at most"),
        (("fleet", "run", "--host", "h1"), "add --cluster URL"),
        (
            ("fleet", "run", "--cluster", "valkey://bus", "--host", "a:b"),
            "the host's name is 'a:b'",
        ),
        (
            ("fleet", "run", "--once", "--cluster", "valkey://bus"),
            "leave --cluster out",
        ),
    ],
)
def test_a_wrong_command_line_does_nothing(
    words: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*words) == 2
    line = only_line(capsys)
    assert reason in line
    assert "S3cret" not in line


def test_a_server_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("cluster", "status", "--cluster", f"unix://{tmp_path}/none") == 4
    assert "cannot be reached (No such file or directory)" in only_line(capsys)


async def test_a_host_manages_its_vms_without_the_server_and_joins_when_it_comes(
    tmp_path: Path,
) -> None:
    ended = JobProgress("0" * 16, GiB, GiB, "done", 0.0)
    Store(tmp_path / "state/cluster/h1").write("jobs", JobRecord(last=ended).to_bytes())
    with run_server(tmp_path) as server:
        server.kill()
        url = f"unix://{server.path}"
        async with (
            serve(tmp_path / "qmp", FAST) as vm,
            start(
                *("fleet", "run", tmp_path / "qmp", "--reserve", "0", "--host", "h1"),
                *("--cluster", url, "--state", tmp_path / "state"),
            ) as running,
        ):
            said = ""
            while "\n" not in said:
                said += (await running.stderr.receive_some()).decode()
            assert "cannot be reached" in said
            assert "the host goes on by its own rules" in said
            await until(lambda: vm.machine.has_shared_client)
            server.start()
            async with open_bus(url) as bus:
                with trio.fail_after(120):
                    while not (await look(bus, time.time())).hosts:
                        await trio.lowlevel.checkpoint()
            running.process.send_signal(signal.SIGTERM)
            assert await running.process.wait() == 0
            said += (await running.stderr.receive_some()).decode()
            assert ended.job not in said  # it was told before the start
            assert actual(vm) == vm.machine.guest.memory.ram


def test_what_is_wrong_is_shown_below_the_hosts() -> None:
    progress = JobProgress("0" * 16, 2, 1, "refused", 0.0, "the disk is full")
    state = HostState(
        *("h1", 0.0, GiB, -MiB, MiB),
        offer=Offer(1, 2, 3),
        unknown_vms=1,
        progress=progress,
        notes=("no [bold]policy[/]",),
    )
    hosts = (
        HostView("h1", state, age=0.0),
        HostView("h2", None, problem="the state is no JSON"),
    )
    console = Console(width=200)
    with console.capture() as captured:
        console.print(draw_cluster(ClusterView(hosts)))
    text = captured.get()
    for said in (
        "2 hosts: 1 healthy, 1 malformed",
        "  none  ",
        "h1: 1 of its VMs do not say how they are",
        "h1: job 0000000000000000: the disk is full",
        "h1: no [bold]policy[/]",
        "h2: the state is no JSON",
    ):
        assert said in text
