"""Queries of orchestrators, answered as QEMU was recorded to answer them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from talk import Client

from qmpballoon.sizes import MiB
from qmpballoon.testing import PROFILES, Machine, MachineConfig, profile


def client(version: str, **config: Any) -> Client:  # noqa: ANN401 - as MachineConfig has
    machine = Machine(MachineConfig(**config), profile(version), random.Random(0))
    return Client(machine)


def ask(asking: Client, command: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON
    return asking.execute(command, **arguments)


@pytest.mark.parametrize("version", PROFILES)
def test_what_is_asked_before_anything_else(version: str) -> None:
    asking = client(version)
    assert ask(asking, "query-kvm") == {"present": True, "enabled": False}
    assert ask(asking, "query-target") == {"arch": "x86_64"}
    assert ask(asking, "query-iothreads") == []
    assert ask(asking, "query-vnc") == {"enabled": False}
    refusal = ask(asking, "query-vm-generation-id")
    assert refusal["desc"] == "VM Generation ID device not found"


@pytest.mark.parametrize(
    ("version", "machine"),
    [("7.2", "pc-q35-7.2"), ("10.0", "pc-q35-10.0"), ("11.1", "pc-q35-11.1")],
)
def test_the_machines_are_the_versions_own(version: str, machine: str) -> None:
    names = [each["name"] for each in ask(client(version), "query-machines")]
    assert machine in names
    assert "pc-q35-99.0" not in names


@pytest.mark.parametrize("version", ["8.2", "9.2"])
def test_what_is_not_known_of_a_version_is_not_made_up(version: str) -> None:
    refusal = ask(client(version), "query-machines")
    assert "does not carry out query-machines" in refusal["desc"]


def test_disks_and_memory_are_the_vms() -> None:
    asking = client("11.1", disks=2, memory=768 * MiB)
    first, second = ask(asking, "query-block")
    assert first["inserted"]["image"]["virtual-size"] == 768 * MiB
    assert (first["inserted"]["node-name"], second["qdev"]) == (
        "disk0",
        "/machine/peripheral-anon/device[1]/virtio-backend",
    )
    nodes = [each["node-name"] for each in ask(asking, "query-named-block-nodes")]
    assert nodes == ["disk1", "disk0"]
    (memory,) = ask(asking, "query-memdev")
    assert (memory["id"], memory["size"]) == ("pc.ram", 768 * MiB)


def test_arguments_that_would_change_the_answer() -> None:
    refusal = ask(client("11.1"), "query-machines", **{"compat-props": True})
    assert refusal["desc"].endswith("query-machines with these arguments")


@pytest.mark.parametrize("version", ["7.2", "10.0", "11.1"])
def test_long_answers_are_on_one_line(version: str) -> None:
    asking = client(version)
    schema = ask(asking, "query-qmp-schema")
    names = {each.get("name") for each in schema}
    assert {"query-balloon", "BALLOON_CHANGE"} <= names
    *_, line = asking.raw.splitlines()
    assert len(line) > 200_000
    models = ask(asking, "query-cpu-definitions")
    assert "qemu64" in {each["name"] for each in models}
    (option,) = ask(asking, "query-command-line-options", option="sandbox")
    assert "spawn" in {each["name"] for each in option["parameters"]}


def test_a_version_that_was_not_run_has_no_long_answers() -> None:
    refusal = ask(client("9.2"), "query-qmp-schema")
    assert "does not carry out query-qmp-schema" in refusal["desc"]
