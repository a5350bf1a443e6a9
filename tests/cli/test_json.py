"""Every document that the command prints is as the schema in the documentation says.

Whatever other tests have the command print with ``--json`` is held against it, too.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, get_args

import click
import documents
import pytest
from in_process import status_of
from jsonschema import ValidationError

from qmpballoon.balloon.results import Binding, Outcome, ReclaimOutcome, StallKind
from qmpballoon.cli._findings import Severity
from qmpballoon.cli._group import command_line
from qmpballoon.cluster.documents import JobPhase
from qmpballoon.cluster.view import RoomLevel
from qmpballoon.fleet.vm_view import VmState
from qmpballoon.testing import GuestConfig, MachineConfig, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A command line for each document; a VM's socket takes the place of VM.
LINES = {
    "status": "status VM",
    "doctor": "doctor VM --watch 0.01",
    "resize": "resize VM 50%",
    "plan": "reclaim VM --dry-run",
    "reclaim": "reclaim VM 16M --report it.json",
    "demo": "demo --simulated --memory 512M --cache 64M",
    "watch": "watch VM --count 1 --record it.jsonl",
    "fleet-status": "fleet status VM",
    "fleet-plan": "fleet plan VM --reserve 0",
    "fleet-reclaim": "fleet reclaim 8M VM",
    "cluster-policy-change": "cluster policy apply policy.toml",
    "cluster-policy": "cluster policy show",
    "cluster-room": "cluster room 1M",
    "cluster-plan": "cluster reclaim 8M --dry-run",
    "cluster-reclaim": "cluster reclaim 8M",
    "cluster-status": "cluster status",
}


@pytest.fixture
def socket() -> Iterator[str]:
    guest = GuestConfig(cache=128 << 20, inflate_rate=20 << 30, deflate_rate=20 << 30)
    with serve(MachineConfig(memory=1 << 30, guest=guest)) as fake:
        yield fake.socket


@pytest.mark.parametrize("name", LINES)
def test_what_is_printed_has_a_closed_schema(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    if name.startswith("cluster"):
        monkeypatch.setenv("QMPBALLOON_CLUSTER", request.getfixturevalue("joined"))
        wish = '[[wish]]\nhosts = "h*"\nreserve = "1MiB"\nfloors = { "vm*" = "10%" }\n'
        (tmp_path / "policy.toml").write_text(wish)
    words = LINES[name].split()
    line = [
        request.getfixturevalue("socket") if word == "VM" else word for word in words
    ]
    assert status_of(*line, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    documents.check(name, printed)
    for changed in change_somewhere(printed):
        with pytest.raises(ValidationError):
            documents.check(name, changed)
    if name == "reclaim":
        assert json.loads((tmp_path / "it.json").read_text()) == printed
    if name == "watch":
        assert json.loads((tmp_path / "it.jsonl").read_text()) == printed
        assert status_of("plot", "it.jsonl", "--output", "it.json") == 0
        drawn = json.loads((tmp_path / "it.json").read_text())
        documents.check("timeline", drawn)


def change_somewhere(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the document with a member more, or less, in one of its objects."""

    def find_objects(value: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:  # noqa: ANN401 - JSON
        if isinstance(value, dict):
            yield path
            for name, member in value.items():
                yield from find_objects(member, *path, name)
        elif isinstance(value, list) and value:
            yield from find_objects(value[0], *path, 0)  # one is like another

    for path in find_objects(document):
        # What QEMU has, or a policy names, these have.
        is_open = path[-1:] in {("extra",), ("quotas",), ("floors",)}
        if not is_open and path[-1:] != ("features",):
            yield change(document, path, lambda it: it.popitem())
        if not is_open:
            yield change(document, path, lambda it: it.update(undocumented=1))


def change(document: Any, path: tuple[str | int, ...], how: Any) -> Any:  # noqa: ANN401 - JSON
    changed = found = copy.deepcopy(document)
    for step in path:
        found = found[step]
    how(found)
    return changed


def test_whatever_has_json_has_a_document() -> None:
    def find(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
        if any("--json" in parameter.opts for parameter in command.params):
            yield path
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below
                yield from find(below, *path, name)

    assert set(find(command_line)) == documents.DOCUMENTS.keys()
    assert {*documents.DOCUMENTS.values(), "plan", "cluster-plan"} == LINES.keys()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("report/properties/outcome", ReclaimOutcome),
        ("cluster-room/properties/hosts/items/properties/level", RoomLevel),
        (
            "cluster-status/properties/hosts/items/properties/job/properties/phase",
            JobPhase,
        ),
        ("resize/properties/outcome", Outcome),
        ("diagnosis/properties/kind", StallKind),
        ("plan/properties/binding", Binding),
        ("fleet-status/properties/vms/items/properties/state", VmState),
        (
            "doctor/properties/vms/items/properties/findings/items/properties/severity",
            Severity,
        ),
    ],
)
def test_the_schema_has_all_words(path: str, words: object) -> None:
    found = documents.SCHEMA["$defs"]
    for step in path.split("/"):
        found = found[step]
    assert found["enum"] == list(get_args(words))


def test_the_page_names_each_document() -> None:
    page = (documents.SCHEMA_FILE.parent / "json.md").read_text("utf-8")
    names = [*LINES, "timeline"]
    assert [name for name in names if f"`#/$defs/{name}`" not in page] == []
