"""A cluster for real: namespaces as hosts, a server with TLS, and what goes wrong.

Three network namespaces are the hosts, and a fourth has the server and the operator; a
bridge connects them. Two hosts have simulated VMs, each with a socket, and the third
has real guests, if there are to be some. The server's configuration, its access control
list and the commands are those of the documentation.

As root, this draws runs by seed, and says what each was and what did not hold::

    python tests/support/real_cluster.py --runs 50 --seed 1 --vms 200 --real 2

With ``--lag 30`` it says instead how far the view of all hosts is behind what guests
have while memory is taken.

In each run memory is taken from all hosts, while one thing goes wrong. What is checked:

- each host takes what it was asked for within 2 %, and at no moment more;
- no balloon goes down twice, and all come back up;
- guests give what those of a lone host with the same quota give;
- 15 seconds after the fault has ended, the view of the cluster is right.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field, frozen
from cluster_files import make_url, write_cluster_files
from valkey_server import Server

from qmpballoon import blocking
from qmpballoon.cluster.valkey import open_bus
from qmpballoon.cluster.view import look
from qmpballoon.errors import BusError
from qmpballoon.sizes import GiB, MiB, format_size
from qmpballoon.testing import FakeQemu, GuestConfig, MachineConfig, lab
from qmpballoon.testing.model.machine import Machine
from qmpballoon.testing.model.profiles import profile
from qmpballoon.testing.model.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

SIMULATED: Final = ("h1", "h2")
REAL: Final = "h3"
SERVER: Final = "10.87.0.1"
HOST_MEMORY: Final = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
PORT: Final = 6379
FAULTS: Final = (
    *("none", "link", "server-stopped", "server-killed", "server-emptied"),
    *("operator-killed", "agent-killed"),
)
HEALING: Final = 15.0  # seconds
PATIENCE: Final = 120.0  # seconds; ends only what hangs
MEMORY: Final = 2 * GiB
# Bytes of what is asked for that may be taken beyond or short of it.
TOLERANCE: Final = 0.02
TRIES: Final = 5  # of taking as much from a lone host


# simulated VMs


async def serve_vms(folder: Path, count: int, rate: int) -> None:
    """Serve VMs until killed; print a line when all can be reached.

    What each is asked for and has is written to a file beside its socket. All of a host
    are in one process: 600 that wake now and then keep two cores busy.
    """
    fakes = [_make_vm(number, rate) for number in range(count)]
    notes = {
        id(fake.machine): _Note((folder / f"vm{number}.log").open("a", buffering=1))
        for number, fake in enumerate(fakes)
    }
    ask = Vm.set_target

    def set_target(vm: Vm, size: int) -> None:
        notes[id(vm)].write("target", size)
        ask(vm, size)

    Vm.set_target = set_target  # type: ignore[assignment,method-assign]
    async with trio.open_nursery() as nursery:
        for number, fake in enumerate(fakes):
            fake.start(nursery)
            await nursery.start(fake.listen, folder / f"vm{number}.qmp")
            notes[id(fake.machine)].write_size(fake.machine.actual)
        print("ready", flush=True)
        while True:
            await trio.sleep(0.2)
            for fake in fakes:
                note = notes[id(fake.machine)]
                if fake.machine.target != note.actual:  # it moves
                    fake.touch()
                    note.write_size(fake.machine.actual)
                    await trio.lowlevel.checkpoint()


@define
class _Note:
    """Where it is written what a VM is asked for and has."""

    _file: TextIO
    actual: int | None = None

    def write(self, what: str, size: int | None) -> None:
        self._file.write(f"{time.time()} {what} {size}\n")

    def write_size(self, size: int | None) -> None:
        if size != self.actual:
            self.actual = size
            self.write("actual", size)


def _make_vm(number: int, rate: int) -> FakeQemu:
    guest = GuestConfig(
        used=(100 + 10 * (number % 30)) * MiB,
        cache=(200 + 20 * (number % 40)) * MiB,
        inflate_rate=rate,
        reclaim_rate=rate,
        deflate_rate=4 * rate,
    )
    config = MachineConfig(memory=MEMORY, guest=guest, epoch=time.time_ns())
    return FakeQemu(Machine(config, profile("10.0"), random.Random(number)))


@define
class SimulatedHost:
    """Simulated VMs, and what they wrote."""

    folder: Path
    vms: int
    rate: int
    _process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start them, with all their memory."""
        self.folder.mkdir(parents=True)
        self._process = subprocess.Popen(
            [
                *(sys.executable, __file__, "serve", str(self.folder)),
                *(str(self.vms), str(self.rate)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def end(self) -> None:
        """End them."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            shutil.rmtree(self.folder)
            self._process = None

    def read(self, since: float) -> dict[str, list[tuple[float, str, int]]]:
        """Return what was written of each VM since a moment."""
        found: dict[str, list[tuple[float, str, int]]] = {}
        for path in self.folder.glob("*.log"):
            rows = [line.split() for line in path.read_text().splitlines()]
            found[path.stem] = [
                (float(at), what, int(size))
                for at, what, size in rows
                if float(at) >= since
            ]
        return found

    def read_sizes(self) -> dict[str, int]:
        """Return what each guest has now."""
        return {
            name: [size for _, what, size in rows if what == "actual"][-1]
            for name, rows in self.read(0.0).items()
        }


# namespaces


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def open_network(prefix: str) -> Iterator[dict[str, str]]:
    """Make the namespaces; yield the name of each by its host's."""
    spaces = {name: f"{prefix}-{name}" for name in ("bus", *SIMULATED, REAL)}
    with ExitStack() as stack:
        for space in spaces.values():
            _ip("netns", "add", space)
            stack.callback(_ip, "netns", "del", space)
            _ip("-n", space, "link", "set", "lo", "up")
        bus = spaces["bus"]
        _ip("-n", bus, "link", "add", "br0", "type", "bridge")
        _ip("-n", bus, "addr", "add", f"{SERVER}/24", "dev", "br0")
        _ip("-n", bus, "link", "set", "br0", "up")
        for number, host in enumerate((*SIMULATED, REAL), 2):
            space, port = spaces[host], f"to-{host}"
            _ip(
                *("-n", bus, "link", "add", port, "type", "veth"),
                *("peer", "name", "eth0", "netns", space),
            )
            _ip("-n", bus, "link", "set", port, "master", "br0", "up")
            _ip("-n", space, "addr", "add", f"10.87.0.{number}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
        yield spaces


# the cluster


@define
class RealCluster:
    """All of it, running.

    Attributes:
        folder: Where everything is.
        spaces: The namespaces by their hosts.
        vms: How many simulated VMs each host has.
        rate: Bytes a second at which each guest gives memory.
        real: The sockets that real guests are read by, by their names.
    """

    folder: Path
    spaces: dict[str, str]
    vms: int
    rate: int
    real: dict[str, Path] = field(factory=dict[str, Path])
    server: Server = field(init=False)
    hosts: dict[str, SimulatedHost] = field(init=False)
    twin: SimulatedHost = field(init=False)
    agents: dict[str, subprocess.Popen[bytes]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        write_cluster_files(self.folder, (*SIMULATED, REAL), SERVER)
        configuration = self.folder / "bus.conf"
        self.server = Server(
            self.folder,
            ["--include", str(configuration)],
            before=_enter(self.spaces["bus"]),
        )
        self.hosts = {
            name: SimulatedHost(self.folder / "vms" / name, self.vms, self.rate)
            for name in SIMULATED
        }
        self.twin = SimulatedHost(self.folder / "vms" / "twin", self.vms, self.rate)

    @property
    def names(self) -> tuple[str, ...]:
        """The hosts that there are."""
        return (*SIMULATED, REAL) if self.real else SIMULATED

    def start(self) -> None:
        """Start VMs, server and agents."""
        self.server.start()
        for host in (*self.hosts.values(), self.twin):
            host.start()
        for name in self.names:
            self.start_agent(name)

    def end(self) -> None:
        """End all."""
        for name in self.agents:
            self.kill_agent(name)
        for host in (*self.hosts.values(), self.twin):
            host.end()
        self.server.kill()

    def start_agent(self, name: str) -> None:
        """Start what a host runs."""
        log = (self.folder / f"{name}.log").open("ab")
        self.agents[name] = subprocess.Popen(
            [
                *_enter(self.spaces[name]),
                *(sys.executable, "-m", "qmpballoon", "fleet", "run"),
                *(f"{self.folder}/vms/{name}/*.qmp", "--reserve", "0", "--host", name),
                *("--state", f"{self.folder}/state"),
            ],
            env=self._environment(name),
            stdout=log,
            stderr=log,
        )
        log.close()

    def kill_agent(self, name: str) -> None:
        """Kill it."""
        self.agents[name].kill()
        self.agents[name].wait()

    def _environment(self, user: str) -> dict[str, str]:
        return {
            **os.environ,
            "QMPBALLOON_CLUSTER": make_url(self.folder, PORT, user, host=SERVER),
            "QMPBALLOON_RUNTIME_DIR": str(self.folder / "runtime"),
        }

    def begin(self, *words: str, user: str = "operator") -> subprocess.Popen[str]:
        """Begin a subcommand of ``cluster``."""
        return subprocess.Popen(
            [
                *_enter(self.spaces["bus"]),
                *(sys.executable, "-m", "qmpballoon", "cluster", *words),
            ],
            env=self._environment(user),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: str, user: str = "viewer") -> dict[str, Any]:
        """Return what a subcommand prints with ``--json``; empty if it fails."""
        printed, _ = self.begin(*words, "--json", user=user).communicate()
        return json.loads(printed) if printed else {}

    def read_sizes(self) -> dict[str, dict[str, int]]:
        """Return what each guest of each host has."""
        sizes = {name: host.read_sizes() for name, host in self.hosts.items()}
        if self.real:
            sizes[REAL] = {vm: _read_actual(path) for vm, path in self.real.items()}
        return sizes

    def find_wrong(self, view: dict[str, Any]) -> str:
        """Say what of a view is not so; empty if all is."""
        seen = {host["name"]: host for host in view.get("hosts", ())}
        if seen.keys() != set(self.names):
            return f"hosts are {sorted(seen)}"
        for name, sizes in self.read_sizes().items():
            if seen[name]["state"] != "healthy":
                return f"{name} is {seen[name]['state']}"
            has = {vm["name"]: vm["actual"] for vm in seen[name]["vms"]}
            if has != sizes:
                other = [vm for vm in sizes if has.get(vm) != sizes[vm]]
                return f"{len(other)} VMs of {name} are not as seen, such as {other[0]}"
        return ""

    def look(self) -> dict[str, Any]:
        """Return what ``cluster status --json`` prints; empty if it fails.

        It is looked at in this process: a command takes long to start where others
        keep the processors busy.
        """
        password = self.folder / "viewer"
        url = f"unix://viewer@{self.server.path}?password_file={password}"

        async def ask() -> dict[str, Any]:
            async with open_bus(url) as bus:
                return (await look(bus, time.time())).to_json()

        try:
            return trio.run(ask)
        except BusError:
            return {}

    def wait_until_ready(self, amount: int) -> str:
        """Wait until the view is right, and hosts offer an amount; say what is not so.

        Guests that have just got their sizes back offer nothing for a while. The hosts
        are alike: once all guests are ready, they offer the same.
        """
        if wrong := self.wait_until_right(PATIENCE):
            return wrong
        give_up = time.monotonic() + PATIENCE
        while True:
            offers = self.list_offers()
            least, most = min(offers, default=0), max(offers, default=0)
            if least >= amount and most - least <= TOLERANCE * amount:
                return ""
            if time.monotonic() > give_up:
                return f"the hosts offer {offers}"
            time.sleep(0.1)

    def list_offers(self) -> list[int]:
        """Return what each host of simulated VMs offers."""
        return [
            sum((host["offer"] or {}).values())
            for host in self.look().get("hosts", ())
            if host["name"] in SIMULATED
        ]

    def find_silent(self) -> list[str]:
        """Return the hosts that are not seen to be well."""
        seen = {host["name"]: host["state"] for host in self.look().get("hosts", ())}
        return [name for name in self.names if seen.get(name) != "healthy"]

    def wait_for_job(self, since: float) -> bool:
        """Wait until a job has begun since a moment; tell whether one has."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            job = self.look().get("job")
            if job and job["until"] - job["seconds"] >= since:
                return True
            time.sleep(0.05)
        return False

    def wait_until_right(self, seconds: float) -> str:
        """Wait until the view is right; say what is wrong after so long."""
        give_up = time.monotonic() + seconds
        while wrong := self.find_wrong(self.look()):
            if time.monotonic() > give_up:
                return wrong
            time.sleep(0.2)
        return ""


def _enter(space: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{space}"]


def _read_actual(socket: Path) -> int:
    with blocking.open_balloon(socket) as balloon:
        return balloon.actual()


# what goes wrong


@frozen
class Run:
    """What is done, and what goes wrong meanwhile.

    Attributes:
        seed: What drew it.
        amount: Bytes that are taken.
        fault: One of ``FAULTS``.
        host: The host that it is about.
        after: Seconds from the beginning of the job.
        lasts: Seconds.
    """

    seed: int
    amount: int
    fault: str
    host: str
    after: float
    lasts: float

    @classmethod
    def draw(cls, seed: int, vms: int) -> Run:
        """Draw one."""
        rng = random.Random(seed)
        # No host offers more than it has, whatever its simulated VMs have.
        unit = min(2 * vms * MiB, HOST_MEMORY * 4 // 5 // 120)
        amount = rng.randint(20, 120) * unit
        return cls(
            seed=seed,
            amount=amount,
            fault=FAULTS[seed % len(FAULTS)],
            host=rng.choice(SIMULATED),
            after=round(rng.uniform(0.0, 4.0), 1),
            lasts=round(rng.uniform(1.0, 12.0), 1),
        )

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {format_size(self.amount)}, {self.fault} ({self.host})"
            f" after {self.after} s for {self.lasts} s"
        )


@contextmanager
def _let_fail(cluster: RealCluster, run: Run, asking: list[Any]) -> Iterator[None]:
    """Let something go wrong within the block."""
    server = cluster.server
    space = cluster.spaces[run.host]
    match run.fault:
        case "link":
            _ip("-n", space, "link", "set", "eth0", "down")
            yield
            _ip("-n", space, "link", "set", "eth0", "up")
        case "server-stopped":
            server.stop()
            yield
            server.go_on()
        case "server-killed":
            server.kill()
            yield
            server.start()
        case "server-emptied":
            server.kill()
            shutil.rmtree(cluster.folder / "appendonlydir", ignore_errors=True)
            yield
            server.start()
        case "operator-killed":
            asking[0].kill()
            asking[0].communicate()
            yield
        case "agent-killed":
            cluster.kill_agent(run.host)
            yield
            cluster.start_agent(run.host)
        case _:
            yield


def carry_out(cluster: RealCluster, run: Run) -> tuple[list[str], dict[str, Any]]:
    """Carry a run out; return what did not hold, and figures."""
    if wrong := cluster.wait_until_ready(run.amount):
        return [f"before: {wrong}"], {}
    before = cluster.read_sizes()
    begun = time.time()
    amount = str(run.amount)
    dry = cluster.ask("reclaim", amount, "--dry-run")
    asking = [cluster.begin("reclaim", amount, "--within", "60s", "--json")]
    if not cluster.wait_for_job(begun):
        return [f"no job began: {asking[0].communicate()[1].strip()}"], {}
    time.sleep(run.after)
    with _let_fail(cluster, run, asking):
        time.sleep(run.lasts)
    healed = time.monotonic()
    # While guests move, the view lags behind them by up to 2 s: then it is not right.
    follower = (
        cluster.begin("reclaim", "--follow", "--json")
        if run.fault == "operator-killed"
        else asking[0]
    )
    give_up = healed + HEALING
    while (silent := cluster.find_silent()) and time.monotonic() < give_up:
        time.sleep(0.1)
    healing = time.monotonic() - healed
    printed, said = follower.communicate()
    report = json.loads(printed or "{}")
    wrong = cluster.wait_until_right(HEALING)
    problems = [f"{name} is silent {healing:.1f} s after healing" for name in silent]
    if wrong:
        problems.append(f"the view: {wrong}")
    parts = {host["name"]: host for host in report.get("hosts", ())}
    if not parts:
        problems.append(f"no report: {said.strip()}")
    problems += _compare_plans(dry, parts)
    problems += _check_amounts(run, parts)
    for name, host in cluster.hosts.items():
        quota = parts.get(name, {}).get("quota", 0)
        problems += _check_moves(name, before[name], host.read(begun), quota)
    problems += _check_return(cluster, before)
    if run.fault in {"none", "operator-killed", "server-stopped"}:
        problems += _compare_with_twin(cluster, parts, begun)
    taken = sum(host["handed_over"] for host in parts.values())
    return problems, {
        "taken": taken,
        "share": taken / run.amount,
        "healing": healing,
    }


def measure_lag(cluster: RealCluster, amount: int, seconds: float) -> list[float]:
    """Take memory, and look at all hosts meanwhile.

    Returns:
        For each look, the seconds for which the guest whose size was seen latest had
        had another one. Guests' sizes are written each 0.2 seconds.
    """
    if wrong := cluster.wait_until_ready(amount):
        raise RuntimeError(wrong)
    began, lags = time.time(), list[float]()
    asking = cluster.begin("reclaim", str(amount), "--within", "60s", "--json")
    while time.time() - began < seconds:
        seen, at = cluster.look(), time.time()
        time.sleep(0.5)  # the next sizes are written
        written = {name: host.read(0.0) for name, host in cluster.hosts.items()}
        lags.append(
            max(
                (
                    _find_lag(written[host["name"]][vm["name"]], vm["actual"], at)
                    for host in seen["hosts"]
                    if host["name"] in written
                    for vm in host["vms"]
                ),
                default=0.0,
            )
        )
    asking.communicate()
    return lags


def _find_lag(rows: list[tuple[float, str, int]], seen: int, at: float) -> float:
    """Return the seconds for which a guest had not had a size that is seen.

    A guest that moves has all sizes between two that are written.
    """
    left, before = at, seen
    for moment, what, size in rows:
        if what != "actual":
            continue
        if size == seen:
            left = at
        elif left == at or min(before, size) <= seen <= max(before, size):
            left = min(moment, at)
        before = size
        if moment > at:
            break
    return at - left


def _compare_plans(dry: dict[str, Any], parts: dict[str, Any]) -> list[str]:
    planned = {host["name"]: host["quota"] for host in dry.get("hosts", ())}
    asked = {name: host["quota"] for name, host in parts.items()}
    whole = sum(planned.values())
    return [
        f"{name} was to give {planned.get(name)} in the dry run, and {asked.get(name)}"
        for name in planned.keys() | asked.keys()
        if abs(planned.get(name, 0) - asked.get(name, 0)) > TOLERANCE * whole
    ]


def _check_amounts(run: Run, parts: dict[str, Any]) -> list[str]:
    """Check that each host gave what it was asked for."""
    problems: list[str] = []
    for name, host in parts.items():
        taken, quota = host["handed_over"], host["quota"]
        if taken > quota:
            problems.append(f"{name} took {taken} of {quota}")
        is_hit = run.fault == "agent-killed" and name == run.host
        if not is_hit and taken < quota * (1 - TOLERANCE):
            problems.append(
                f"{name} took {taken} of {quota}: {host['phase']} {host['detail']}"
            )
    return problems


def _check_moves(
    name: str,
    before: dict[str, int],
    rows: dict[str, list[tuple[float, str, int]]],
    quota: int,
) -> list[str]:
    """Check that no more was taken at any moment, and from nobody twice."""
    problems: list[str] = []
    sizes = dict(before)
    missing = most = 0
    changes = sorted(
        (at, vm, size)
        for vm, of_vm in rows.items()
        for at, what, size in of_vm
        if what == "actual"
    )
    for _, vm, size in changes:
        missing += sizes[vm] - size
        sizes[vm] = size
        most = max(most, missing)
    if most > quota:
        problems.append(f"{name} had taken {most} of {quota} at one moment")
    for vm, of_vm in rows.items():
        went_up = False
        last = before[vm]
        for _, what, size in of_vm:
            if what != "target":
                continue
            if went_up and size < last:
                problems.append(f"{name}: {vm} was shrunk again, to {size}")
                break
            went_up |= size > last
            last = size
    return problems


def _check_return(cluster: RealCluster, before: dict[str, dict[str, int]]) -> list[str]:
    """Check that all guests got their sizes back."""
    give_up = time.monotonic() + HEALING
    while (now := cluster.read_sizes()) != before:
        if time.monotonic() > give_up:
            return [
                f"{name}: {vm} has {size}, and had {before[name][vm]}"
                for name, sizes in now.items()
                for vm, size in sizes.items()
                if size != before[name][vm]
            ][:3]
        time.sleep(0.2)
    return []


def _compare_with_twin(
    cluster: RealCluster, parts: dict[str, Any], begun: float
) -> list[str]:
    """Take as much from a lone host, and compare how far each guest went down."""
    name = SIMULATED[0]
    quota = parts.get(name, {}).get("quota", 0)
    if not quota:
        return []
    for _ in range(TRIES):
        at = time.time()
        taken, said = _take_alone(cluster, quota)
        if taken >= quota * (1 - TOLERANCE):
            break
    else:
        return [f"alone, it gave {taken} of {quota}: {said}"]
    ours = _find_lowest(cluster.hosts[name].read(begun))
    alone = _find_lowest(cluster.twin.read(at))
    differ = [
        vm
        for vm in ours | alone
        if abs(ours.get(vm, MEMORY) - alone.get(vm, MEMORY)) > TOLERANCE * MEMORY
    ]
    return [
        f"{len(differ)} VMs of {name} moved otherwise than alone, such as {vm}:"
        f" {ours.get(vm)} and {alone.get(vm)}"
        for vm in differ[:1]
    ]


def _take_alone(cluster: RealCluster, quota: int) -> tuple[int, str]:
    """Take an amount from the lone host; return how much it gave, and what was said.

    The command has just started. Where others keep the processors busy, all simulated
    guests together may answer it so late that they count as guests without a driver.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-m", "qmpballoon", "fleet", "reclaim", str(quota)),
            *(f"{cluster.twin.folder}/*.qmp", "--json", "--timeout", f"{PATIENCE:g}"),
        ],
        env={
            **os.environ,
            "QMPBALLOON_RUNTIME_DIR": str(cluster.folder / "runtime"),
        },
        check=False,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout or "{}")
    return report.get("handed_over", 0), done.stderr.strip()


def _find_lowest(rows: dict[str, list[tuple[float, str, int]]]) -> dict[str, int]:
    """Return the smallest size that each guest had, of those that had less."""
    sizes = {
        vm: [size for _, what, size in of_vm if what == "actual"]
        for vm, of_vm in rows.items()
    }
    return {vm: min(of_vm) for vm, of_vm in sizes.items() if of_vm}


# the script


@contextmanager
def open_cluster(
    folder: Path, *, vms: int, rate: int, real: dict[str, Path] | None = None
) -> Iterator[RealCluster]:
    """Run a cluster within the block."""
    with open_network(f"qb{os.getpid()}") as spaces:
        cluster = RealCluster(folder, spaces, vms, rate, real or {})
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.end()


async def run_with_guests(
    folder: Path, count: int, call: Callable[[dict[str, Path]], int]
) -> int:
    """Call something in a thread while real guests run; return what it returns.

    Each has a second monitor, by which it is read.
    """
    (folder / "vms" / REAL).mkdir(parents=True)
    async with AsyncExitStack() as stack:
        real: dict[str, Path] = {}
        for number in range(count):
            managed = folder / "vms" / REAL / f"real{number}.qmp"
            guest = await stack.enter_async_context(
                lab.boot(
                    memory=GiB,
                    cache=400 * MiB,
                    extra=("-qmp", f"unix:{managed},server=on,wait=off"),
                )
            )
            real[managed.stem] = Path(guest.socket)
        return await trio.to_thread.run_sync(call, real)


def main() -> None:
    """Draw runs, carry them out, and say what did not hold."""
    if sys.argv[1:2] == ["serve"]:
        trio.run(serve_vms, Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vms", type=int, default=200)
    parser.add_argument("--real", type=int, default=0)
    parser.add_argument("--lag", type=float, default=0.0, metavar="SECONDS")
    arguments = parser.parse_args()

    def run_all(real: dict[str, Path]) -> int:
        violations = 0
        with open_cluster(
            folder, vms=arguments.vms, rate=32 * MiB, real=real
        ) as cluster:
            if arguments.lag:
                amount = 2 * arguments.vms * 100 * MiB
                lags = measure_lag(cluster, amount, arguments.lag)
                print(f"{len(lags)} looks: {max(lags):.2f} s behind at most")
                return 0
            for seed in range(arguments.seed, arguments.seed + arguments.runs):
                run = Run.draw(seed, arguments.vms)
                problems, figures = carry_out(cluster, run)
                violations += len(problems)
                print(run, figures, *problems, sep="\n    ", flush=True)
        print(f"{arguments.runs} runs, {violations} violations")
        return violations

    with tempfile.TemporaryDirectory(prefix="qb") as name:
        folder = Path(name)
        violations = (
            trio.run(run_with_guests, folder, arguments.real, run_all)
            if arguments.real
            else run_all({})
        )
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
