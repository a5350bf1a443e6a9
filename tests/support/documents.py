"""The documents that the command prints with ``--json``, and their schema."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jsonschema.protocols import Validator

__all__ = ["DOCUMENTS", "SCHEMA", "SCHEMA_FILE", "check", "check_output"]

SCHEMA_FILE: Final = Path(__file__).parents[2] / "docs/reference/schema.json"
SCHEMA: Final[dict[str, Any]] = json.loads(SCHEMA_FILE.read_text("utf-8"))
# The name of each document, by the subcommand that prints it.
DOCUMENTS: Final = {
    ("cluster", "policy", "apply"): "cluster-policy-change",
    ("cluster", "policy", "check"): "cluster-policy-change",
    ("cluster", "policy", "show"): "cluster-policy",
    ("cluster", "reclaim"): "cluster-reclaim",
    ("cluster", "room"): "cluster-room",
    ("cluster", "status"): "cluster-status",
    ("demo",): "demo",
    ("doctor",): "doctor",
    ("fleet", "plan"): "fleet-plan",
    ("fleet", "reclaim"): "fleet-reclaim",
    ("fleet", "run"): "fleet-plan",
    ("fleet", "status"): "fleet-status",
    ("reclaim",): "reclaim",
    ("resize",): "resize",
    ("status",): "status",
    ("watch",): "watch",
}


def check_output(arguments: Sequence[str], output: str) -> None:
    """Hold what a command line has printed against the schema, if it is JSON.

    Args:
        arguments: The command line without the program's name.
        output: Standard output, with a document on each line.

    Raises:
        ValidationError: It is not as the schema says. The message says where.
    """
    if "--json" not in arguments:
        return
    depth = next(n for n in range(1, 4) if tuple(arguments[:n]) in DOCUMENTS)
    name = DOCUMENTS[tuple(arguments[:depth])]
    if "--dry-run" in arguments:
        name = {"reclaim": "plan", "cluster-reclaim": "cluster-plan"}[name]
    for line in output.splitlines():
        check(name, json.loads(line))


def check(name: str, value: object) -> None:
    """Hold a document against its schema; raises as :func:`check_output`."""
    _validator(name).validate(value)


@cache
def _validator(name: str) -> Validator:
    # Loaded only here: much that starts a command prints no JSON.
    from jsonschema import Draft202012Validator as Draft  # noqa: PLC0415

    assert name in SCHEMA["$defs"]
    whole = {**SCHEMA, "$ref": f"#/$defs/{name}"}
    Draft.check_schema(whole)
    return Draft(whole, format_checker=Draft.FORMAT_CHECKER)
