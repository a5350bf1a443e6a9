"""What is published holds what it should, and works with each extra alone.

Builds the distributions as they would be uploaded, and installs them into virtual
environments with nothing else in them: uv fetches what they need. The VMs are fakes
that are served by this process, out of the tree.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from email.parser import Parser
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zipfile import ZipFile

import pytest
from attrs import frozen

import qmpballoon
from qmpballoon import GiB
from qmpballoon.testing import GuestConfig, MachineConfig, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("uv", reason="tox -e package has what this needs")
pytestmark = pytest.mark.package

TREE: Final = Path(__file__).parents[2]
PACKAGE: Final = TREE / "qmpballoon"
# Nothing of this environment's own is to be found by the others.
ENVIRONMENT: Final = {
    name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
}
VM: Final = MachineConfig(
    memory=GiB,
    # A faster guest than any.
    guest=GuestConfig(
        cache=GiB // 2,
        inflate_rate=20 * GiB,
        reclaim_rate=20 * GiB,
        deflate_rate=20 * GiB,
    ),
)


@frozen
class Installed:
    """A virtual environment with the wheel and one of its extras in it."""

    bin: Path
    home: Path

    def run(
        self, command: str, *arguments: str, status: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its commands in an empty folder."""
        done = subprocess.run(
            [self.bin / command, *arguments],
            check=False,
            capture_output=True,
            cwd=self.home,
            env=ENVIRONMENT,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def python(self, program: str, *arguments: str) -> str:
        """Run a program with warnings as errors, and return what it prints."""
        return self.run("python", "-W", "error", "-c", program, *arguments).stdout


def uv(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "uv", "--quiet", *arguments]
    subprocess.run(command, check=True, cwd="/", env=ENVIRONMENT)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from that; return their folder."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--out-dir", folder, TREE)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (wheel,) = distributions.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def install(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Installed]:
    """Return a function that installs the wheel with an extra, or with "" none."""

    @cache
    def with_extra(extra: str, *options: str) -> Installed:
        folder = tmp_path_factory.mktemp(extra or "none")
        python, what = folder / "venv" / "bin" / "python", f"{wheel}[{extra}]"
        uv("venv", "--python", sys.executable, folder / "venv")
        uv("pip", "install", *options, "--python", python, what if extra else wheel)
        (folder / "home").mkdir()
        return Installed(folder / "venv" / "bin", folder / "home")

    return with_extra


@pytest.fixture
def socket() -> Iterator[str]:
    with serve(VM) as fake:
        yield fake.socket


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    tree = {path.relative_to(TREE).as_posix() for path in PACKAGE.rglob("*.*")}
    data = f"qmpballoon-{qmpballoon.__version__}.data/data"
    shared = {f"{data}/{path.relative_to(TREE)}" for path in list_shared()}
    assert names == {name for name in tree if "__pycache__" not in name} | shared
    assert {
        "qmpballoon/py.typed",
        "qmpballoon/testing/model/data/qemu-10.0.json",
        "qmpballoon/testing/lab/init.sh",
    } <= names


def list_shared() -> list[Path]:
    return [path for path in (TREE / "share").rglob("*") if path.is_file()]


def test_another_build_of_it_has_the_same_bytes(
    distributions: Path, tmp_path: Path
) -> None:
    """From another folder, with other times and permissions of the files."""
    (sdist,) = distributions.glob("*.tar.gz")
    # By tar: Python knows the filter that it asks for only from 3.11.4 on.
    subprocess.run(["tar", "-xzf", sdist, "-C", tmp_path], check=True)
    (tree,) = tmp_path.iterdir()
    for path in tree.rglob("*"):
        path.touch()
        path.chmod(path.stat().st_mode & 0o700)
    uv("build", "--out-dir", tmp_path / "again", tree)
    for first in distributions.glob("*.*"):
        assert (tmp_path / "again" / first.name).read_bytes() == first.read_bytes()


def test_an_index_takes_it_and_its_page_is_shown(distributions: Path) -> None:
    files = [*distributions.glob("*.tar.gz"), *distributions.glob("*.whl")]
    check("twine", "check", "--strict", *files)


def test_the_wheel_has_nothing_that_a_wheel_should_not_have(wheel: Path) -> None:
    check("check_wheel_contents", wheel)


def check(module: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        files = {
            name.partition(".dist-info/")[2]: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert files["licenses/LICENSE"] == (TREE / "LICENSE").read_text("utf-8")
    metadata = Parser().parsestr(files["METADATA"])
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Version"] == qmpballoon.__version__
    assert {*metadata.get_all("Provides-Extra", [])} == {
        *("charts", "cli", "cluster", "libvirt", "prometheus", "qemu-qmp"),
        *("testing", "web"),
    }
    assert metadata.get_payload() == (TREE / "README.md").read_text("utf-8")


def test_the_sdist_holds_what_checks_it(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in (
        *(".ci", "benchmarks", "debian", "docs", "examples", "qmpballoon", "share"),
        "tests",
    ):
        assert any(name.startswith(f"{folder}/") for name in names), folder
    assert {
        *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md"),
        *("pyproject.toml", "tox.ini", "toxfile.py"),
    } <= names


def test_alone_it_is_the_library(
    install: Callable[[str], Installed], socket: str
) -> None:
    program = """
import sys
from qmpballoon.blocking import open_balloon
with open_balloon(sys.argv[1]) as balloon:
    print(balloon.query().actual, balloon.resize(768 << 20).outcome)
"""
    assert install("").python(program, socket) == f"{GiB} reached\n"


def test_alone_all_of_the_library_can_be_imported(
    install: Callable[[str], Installed],
) -> None:
    # Not by pkgutil, which imports each package on its way.
    program = """
import sys
from importlib import import_module
from pathlib import Path
import qmpballoon
OTHERS = {
    # Above the library, which does not load them.
    ("__main__",), ("cli",), ("testing",),
    ("fleet", "metrics"),  # has an extra of its own
    ("asyncio", "held_client"),  # likewise
    ("cluster", "valkey"), ("web",),  # likewise
}
top = Path(qmpballoon.__file__).parent
for file in top.rglob("*.py"):
    parts = file.relative_to(top).with_suffix("").parts
    if parts[:1] not in OTHERS and parts not in OTHERS:
        import_module(".".join(["qmpballoon", *parts]).removesuffix(".__init__"))
print(*sys.modules)
"""
    loaded = install("").python(program).split()
    assert {"qmpballoon.asyncio", "qmpballoon.fleet", "qmpballoon.libvirt"} <= {*loaded}
    parts = {".".join(name.split(".")[:2]) for name in loaded}
    assert {"qmpballoon.cli", "qmpballoon.testing"}.isdisjoint(parts)


def test_alone_the_command_says_what_is_missing(
    install: Callable[[str], Installed],
) -> None:
    done = install("").run("qmpballoon", "status", "/run/vm1.qmp", status=1)
    assert done.stdout == ""
    assert done.stderr == (
        "qmpballoon: click is not installed: pip install 'qmpballoon[cli]'\n"
    )


def test_cli(install: Callable[[str], Installed], socket: str) -> None:
    installed = install("cli")
    assert "in the balloon" in installed.run("qmpballoon", "status", socket).stdout
    printed = installed.run("qmpballoon", "resize", socket, "50%", "--json").stdout
    assert json.loads(printed)["actual"] == GiB // 2
    printed = installed.run("qmpballoon", "status", socket, "--json").stdout
    assert json.loads(printed)["balloon"]["actual"] == GiB // 2


def test_cli_with_the_oldest_packages_that_are_allowed(
    install: Callable[..., Installed], socket: str
) -> None:
    installed = install("cli", "--resolution", "lowest-direct")
    assert "in the balloon" in installed.run("qmpballoon", "status", socket).stdout
    demo = ("demo", "--simulated", "--memory", "512M", "--cache", "64M")
    assert "handed over" in installed.run("qmpballoon", *demo).stdout
    # Subcommands of subcommands are found by click 8.2.1 and later.
    assert complete(installed, "qmpballoon fleet stat") == "status"


def test_cli_runs_as_a_module(install: Callable[[str], Installed]) -> None:
    program = ("python", "-W", "error", "-m", "qmpballoon", "--version")
    assert install("cli").run(*program).stdout == (
        f"qmpballoon {qmpballoon.__version__}\n"
    )


def test_cli_brings_its_man_page_and_completion(
    install: Callable[[str], Installed],
) -> None:
    installed = install("cli")
    top = installed.bin.parent
    for path in list_shared():
        assert (top / path.relative_to(TREE)).read_bytes() == path.read_bytes()
    assert complete(installed, "qmpballoon stat") == "status"


def complete(installed: Installed, line: str) -> str:
    """Return what bash offers, with what was installed for bash-completion."""
    # It loads the file of that name, and calls what that has registered.
    script = r"""
PATH="$1:$PATH"
source "$1/../share/bash-completion/completions/qmpballoon"
COMP_LINE="$2" COMP_POINT="${#2}"
[[ "$(complete -p qmpballoon)" =~ -F\ ([^ ]+) ]]
"${BASH_REMATCH[1]}" qmpballoon stat qmpballoon
echo "${COMPREPLY[@]}"
"""
    bash = ["bash", "-c", script, "bash", str(installed.bin), line]
    done = subprocess.run(bash, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.strip()


def test_cli_simulates_a_guest_without_the_extra_testing(
    install: Callable[[str], Installed],
) -> None:
    demo = ("demo", "--simulated", "--memory", "512M", "--cache", "64M", "--json")
    report = json.loads(install("cli").run("qmpballoon", *demo).stdout)
    assert report["outcome"] == "done"


def test_cli_says_what_charts_need(
    install: Callable[[str], Installed], socket: str
) -> None:
    arguments = ("reclaim", socket, "--report", "it.svg")
    done = install("cli").run("qmpballoon", *arguments, status=1)
    assert done.stderr == (
        "qmpballoon: matplotlib is not installed: pip install 'qmpballoon[charts]'\n"
    )


def test_charts(install: Callable[[str], Installed], socket: str) -> None:
    program = """
import sys
from pathlib import Path
from qmpballoon.blocking import open_balloon
from qmpballoon.export import save
with open_balloon(sys.argv[1]) as balloon:
    report = balloon.reclaim()
for name in ("it.svg", "it.png"):
    save(Path(name), report.timeline, title="An empty environment")
"""
    installed = install("charts")
    installed.python(program, socket)
    assert "An empty environment" in (installed.home / "it.svg").read_text("utf-8")
    assert (installed.home / "it.png").read_bytes().startswith(b"\x89PNG")


def test_prometheus(install: Callable[[str], Installed]) -> None:
    program = """
from prometheus_client import CollectorRegistry, generate_latest
from qmpballoon.fleet.metrics import FleetCollector, FleetSnapshot
from qmpballoon.fleet.guests import Host
from qmpballoon.fleet.policy import Rules
host, rules = Host(total=8, available=3, promised=0), Rules(reserve=1, buffer=1)
seen = FleetSnapshot(host, rules, [])
registry = CollectorRegistry()
registry.register(FleetCollector(lambda: seen))
print(generate_latest(registry).decode())
"""
    page = install("prometheus").python(program)
    assert "\nqmpballoon_host_memory_available_bytes 3.0\n" in page


def test_cluster(install: Callable[[str], Installed]) -> None:
    program = """
import sys
import trio
from qmpballoon.cluster import open_bus
from qmpballoon.errors import BusError

async def main():
    async with open_bus(f"unix://{sys.argv[1]}") as bus:
        try:
            await bus.get(["qb:policy"])
        except BusError as error:
            print(error)

trio.run(main)
"""
    installed = install("cluster")
    said = installed.python(program, str(installed.home / "none"))
    assert "cannot be reached (No such file or directory)" in said


def test_web(install: Callable[[str], Installed]) -> None:
    program = """
from qmpballoon.web import Access, open_pages
from qmpballoon.web.app import App
from qmpballoon._transport.http_hosts import KnownHosts
print(Access("a token", KnownHosts.of("::1")).hosts.has("[::1]:80"))
"""
    assert install("web").python(program) == "True\n"


def test_testing(install: Callable[[str], Installed]) -> None:
    installed = install("testing")
    (installed.home / "test_mine.py").write_text(
        """
from hypothesis import given, settings
from qmpballoon import GiB, open_balloon
from qmpballoon.blocking import open_balloon as open_blocking
from qmpballoon.testing import strategies
from qmpballoon.testing import MachineConfig

def test_over_a_socket(fake_qemu):
    with open_blocking(fake_qemu.socket) as balloon:
        assert balloon.actual() == 2 * GiB

@settings(max_examples=3, deadline=None)
@given(guest=strategies.guests(1 * GiB))
def test_simulated(simulated_world, guest):
    async def world(vm):
        async with open_balloon(vm.connect()) as balloon:
            return await balloon.actual()

    assert simulated_world(world, MachineConfig(memory=GiB, guest=guest)) == GiB
""",
        encoding="utf-8",
    )
    done = installed.run("python", "-m", "pytest", "-W", "error", "-q", "test_mine.py")
    assert "2 passed" in done.stdout


def can_build_libvirt() -> bool:
    config = shutil.which("pkg-config")
    return config is not None and (
        subprocess.run([config, "--exists", "libvirt"], check=False).returncode == 0
    )


@pytest.mark.skipif(
    not can_build_libvirt(), reason="libvirt-python is built from libvirt's headers"
)
def test_libvirt(install: Callable[[str], Installed]) -> None:
    # libvirt's own test driver has a domain, and no QEMU to pass a command to.
    program = """
import libvirt
from qmpballoon import MonitorError
from qmpballoon.libvirt import find_balloon
libvirt.registerErrorHandler(lambda *_: None, None)
try:
    find_balloon(libvirt.open("test:///default").lookupByName("test"))
except MonitorError as error:
    print(error)
"""
    said = install("libvirt").python(program)
    assert said.count("\n") == 1
    assert "test" in said
