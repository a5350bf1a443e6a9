"""How documents are encoded, and what is checked of those that others have written."""

from __future__ import annotations

import json

import pytest

from qmpballoon.cluster._fields import Fields, Malformed, decode, encode

LARGEST = 2**63 - 1


def test_a_document_says_its_kind_and_version_in_utf8() -> None:
    data = encode("state", {"name": "é", "at": 1})
    assert data == '{"kind":"state","v":1,"name":"é","at":1}'.encode()
    assert decode(data, "state").text("name") == "é"


@pytest.mark.parametrize(
    ("change", "why"),
    [({"kind": "job"}, "kind is"), ({"v": 2}, "v is"), ({"v": None}, "v is")],
)
def test_another_kind_or_version_is_refused(
    change: dict[str, object], why: str
) -> None:
    document = {"kind": "state", "v": 1} | change
    with pytest.raises(Malformed, match=why):
        decode(json.dumps(document).encode(), "state")


@pytest.mark.parametrize("minimum", [0, 1])
def test_a_size_is_between_its_minimum_and_what_qemu_can_say(minimum: int) -> None:
    for size in (minimum, LARGEST):
        fields = Fields({"size": size}, "it")
        assert fields.size("size", minimum=minimum) == size
    for wrong in (minimum - 1, LARGEST + 1, True, 1.0, "1", None):
        fields = Fields({"size": wrong}, "it")
        with pytest.raises(Malformed, match="it: size is"):
            fields.size("size", minimum=minimum)


def test_what_may_be_missing_is_checked_if_it_is_there() -> None:
    fields = Fields({"size": -1, "list": [1, 2, 3], "table": {"a": 1, "b": 2}}, "it")
    assert fields.optional_size("other") is None
    assert fields.optional_name("other") is None
    assert fields.items("other", lambda value, _: value, 0) == ()
    with pytest.raises(Malformed):
        fields.optional_size("size")
    assert fields.items("list", lambda value, _: value, 3) == (1, 2, 3)
    with pytest.raises(Malformed, match="at most 2"):
        fields.items("list", lambda value, _: value, 2)
    assert fields.mapping("table", 2) == {"a": 1, "b": 2}
    with pytest.raises(Malformed, match="at most 1"):
        fields.mapping("table", 1)


def test_of_what_a_person_wrote_unknown_fields_are_refused() -> None:
    fields = Fields({"a": 1, "x": 2}, "it")
    fields.require_known({"a", "x"})
    with pytest.raises(Malformed, match="'x' is unknown: use a, b"):
        fields.require_known({"a", "b"})
