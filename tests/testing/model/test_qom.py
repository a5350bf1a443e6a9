"""Objects are found by their paths, and linked to, as in QEMU."""

from __future__ import annotations

from talk import make


def test_a_link_is_looked_up_before_it_is_refused() -> None:
    client = make()

    def point(value: object) -> str:
        about = {"path": "balloon0", "property": "iothread", "value": value}
        answer = client.execute("qom-set", **about)
        return str(answer["desc"])

    assert point("nope") == "Device 'nope' not found"
    assert point("/machine").endswith("expected: iothread")
    assert point(1).endswith("expected: string")
    assert point("").startswith("Attempt to set link property 'iothread'")
