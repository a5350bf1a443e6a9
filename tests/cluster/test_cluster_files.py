"""The files of the documentation's set-up are as the software is.

What each role may do is tried on a real server, in ``test_roles.py``.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from cluster_files import FILES
from pages import SEEN, page
from prometheus_client.parser import text_string_to_metric_families

from qmpballoon.cluster.bus import (
    JOB_KEY,
    LARGEST_VALUE,
    POLICY_KEY,
    make_quota_key,
    make_state_key,
    make_vms_key,
)
from qmpballoon.cluster.valkey import parse_bus_address
from qmpballoon.sizes import MiB

if TYPE_CHECKING:
    from pathlib import Path


def test_the_alerts_ask_for_what_there_is() -> None:
    served = {family.name for family in text_string_to_metric_families(page(SEEN))}
    asked = set(re.findall(r"qmpballoon_\w+", (FILES / "alerts.yml").read_text()))
    assert asked
    assert asked <= served


def test_promtool_understands_the_alerts() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: it is in Debian's package prometheus")
    said = subprocess.run(
        [promtool, "check", "rules", FILES / "alerts.yml"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "SUCCESS: 3 rules found" in said


def test_the_units_url_is_one() -> None:
    unit = (FILES / "qmpballoon-cluster.conf").read_text()
    (url,) = re.findall(r'"QMPBALLOON_CLUSTER=(.*)"', unit)
    address = parse_bus_address(url.replace("%H", "host1").replace("%d", "/run/c"))
    assert (address.user, address.is_encrypted) == ("host1", True)
    assert str(address.password_file) == "/run/c/bus.password"
    loaded = re.findall(r"LoadCredential=([\w.]+):", unit)
    assert sorted(re.findall(r"%d/([\w.]+)", unit)) == sorted(loaded)


def test_the_page_puts_the_units_files_where_it_reads_them() -> None:
    unit = (FILES / "qmpballoon-cluster.conf").read_text()
    page = (FILES.parent / "cluster.md").read_text()
    files = re.findall(r"/etc/qmpballoon/bus/[\w.]+", unit)
    assert len(files) == 3
    assert [file for file in files if file not in page] == []


def test_the_rules_name_the_keys_that_there_are() -> None:
    rules = (FILES / "users.acl").read_text()
    keys = (POLICY_KEY, JOB_KEY, make_quota_key("host1"), make_quota_key("*"))
    for key in (*keys, make_state_key("host1"), make_vms_key("host1")):
        assert f"~{key} " in rules


def test_the_lines_on_the_page_add_users_with_their_passwords(tmp_path: Path) -> None:
    page = (FILES.parent / "cluster.md").read_text()
    (lines,) = re.findall(r"^```sh\n(add\(\).*?)^```$", page, re.MULTILINE | re.DOTALL)
    template = (FILES / "users.acl").read_text()
    (tmp_path / "users.acl.template").write_text(template)
    subprocess.run(["sh", "-euc", lines], check=True, cwd=tmp_path)
    expected = template.replace("host1", "host7").splitlines()
    for number, row in enumerate(expected):
        if "PASSWORD" in row:
            password = tmp_path / f"{row.split()[1]}.password"
            assert password.stat().st_mode & 0o777 == 0o600
            digest = hashlib.sha256(password.read_bytes().strip()).hexdigest()
            expected[number] = row.replace("PASSWORD", digest)
    assert (tmp_path / "users.acl").read_text().splitlines() == expected


def test_the_page_makes_the_folders_of_the_server() -> None:
    page = (FILES.parent / "cluster.md").read_text()
    (made,) = re.findall(r"^install -d -o redis [^/\n]* (/.*)$", page, re.MULTILINE)
    configuration = (FILES / "bus.conf").read_text()
    named = re.findall(r"^[\w-]*file (/.*)/|^dir (/.*)$", configuration, re.MULTILINE)
    # A service's own folder is the root, where it may not write.
    assert "\ndir " in configuration
    assert {file or folder for file, folder in named} == {*made.split()}


def test_the_server_takes_no_larger_values_than_hosts_read() -> None:
    (size,) = re.findall(
        r"proto-max-bulk-len (\d+)mb", (FILES / "bus.conf").read_text()
    )
    assert int(size) * MiB == LARGEST_VALUE
