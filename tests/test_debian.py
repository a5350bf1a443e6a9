"""What a package for Debian is built by fits the rest of the tree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import qmpballoon

TREE: Final = Path(__file__).parents[1]
UNIT: Final = TREE / "docs/howto/fleet-files/qmpballoon-fleet.service"


def test_the_package_has_the_librarys_version() -> None:
    changelog = (TREE / "debian/changelog").read_text("utf-8")
    assert changelog.startswith(f"qmpballoon ({qmpballoon.__version__}-")


def test_what_the_rules_install_is_there() -> None:
    rules = (TREE / "debian/rules").read_text("utf-8")
    files = re.findall(r"(?<= )(?:share|docs|debian/command)[\w./-]*(?= )", rules)
    assert len(files) >= 5
    assert [file for file in files if not (TREE / file).is_file()] == []


def find_extras(path: str) -> set[str]:
    """Return the extras that a file has pip install."""
    (extras,) = re.findall(r"\[([\w,]+)\]'", (TREE / path).read_text("utf-8"))
    return {*extras.split(",")}


def test_an_environment_for_clusters_does_all_that_the_package_does() -> None:
    # `web --cluster` and `fleet run --cluster URL --metrics` need more than `cluster`.
    package = find_extras("debian/rules")
    assert find_extras("debian/command") == package | {"cluster"}


@pytest.mark.parametrize(
    ("module", "arguments", "remedy"),
    [
        ("matplotlib", "reclaim /run/vm1.qmp --report it.svg", "python3-matplotlib"),
        ("libvirt", "status libvirt:vm1", "python3-libvirt"),
        ("coredis", "cluster status --cluster valkey://viewer@bus", "python3-venv"),
        ("anyio", "web --cluster valkey://viewer@bus", "python3-venv"),
    ],
)
def test_the_command_says_what_users_of_debian_install(
    module: str, arguments: str, remedy: str
) -> None:
    program = """
import runpy, sys
command, missing, *sys.argv[1:] = sys.argv[1:]
class Nowhere:
    @staticmethod
    def find_spec(name, *_):
        if name == missing:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Nowhere)
runpy.run_path(command)
"""
    words = [str(TREE / "debian/command"), module, *arguments.split()]
    run = [sys.executable, "-c", program, *words]
    done = subprocess.run(run, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"qmpballoon: {module} is not installed: ")
    assert remedy in done.stderr
    assert done.stderr.count("\n") == 1


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze"
)


@needs_systemd
def test_systemd_understands_the_service(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # What it starts has to be there.
    unit.write_text(UNIT.read_text("utf-8").replace("=/usr/local/bin/", "=/bin/env "))
    more = tmp_path / f"{UNIT.name}.d" / "cluster.conf"
    more.parent.mkdir()
    shutil.copy(TREE / "docs/howto/cluster-files/qmpballoon-cluster.conf", more)
    verify = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(verify, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_notes_what_is_owed_in_a_folder_of_its_own() -> None:
    unit = UNIT.read_text("utf-8")
    (own,) = re.findall(r"^RuntimeDirectory=(.+)$", unit, re.MULTILINE)
    # Within it: systemd's own folder is a link, and none is followed.
    assert f"\nEnvironment=QMPBALLOON_RUNTIME_DIR=%t/{own}/owed\n" in unit
    assert "\nRuntimeDirectoryPreserve=yes\n" in unit


@needs_systemd
def test_the_service_is_exposed_to_little() -> None:
    # Its figure times ten; each systemd adds some rules of its own.
    rate = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(UNIT)]
    done = subprocess.run(rate, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
