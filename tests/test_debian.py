"""What a package for Debian is built by fits the rest of the tree."""

from __future__ import annotations

import re
import shutil
import subprocess
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


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze"
)
def test_the_service_is_exposed_to_little() -> None:
    # Its figure times ten; each systemd adds some rules of its own.
    rate = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(UNIT)]
    done = subprocess.run(rate, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
