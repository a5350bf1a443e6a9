"""A client that talks to a simulated machine straight, without streams or a loop."""

from __future__ import annotations

import json
import random
from typing import Any, cast

from qmpballoon.testing import GuestConfig, Machine, MachineConfig, profile

__all__ = ["UNSET", "Client", "make"]

UNSET = 2**64 - 1
"""What QEMU says of a statistic that the guest has not told."""


class Client:
    """Talks to a machine; remembers what it was told, and when."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.session = machine.connect()
        self.events: list[tuple[int, dict[str, Any]]] = []
        self.raw = b""
        self.execute("qmp_capabilities")

    def read(self) -> list[dict[str, Any]]:
        """Return the answers that have come, and keep the events."""
        data = self.session.take_output()
        self.raw += data
        answers = []
        for line in data.splitlines():
            message = json.loads(line)
            if "event" in message:
                self.events.append((self.machine.now, message))
            else:
                answers.append(message)
        return answers

    def execute(self, command: str, **arguments: object) -> dict[str, Any]:
        """Return what a command returns, or its error's description."""
        request = {"execute": command, "arguments": arguments}
        self.session.receive(json.dumps(request).encode())
        answer = self.read()[-1]
        result: Any = answer.get("return", answer.get("error"))
        return cast("dict[str, Any]", result)

    def advance(self, duration: int) -> None:
        """Let time pass, event by event, so that each one's time is seen."""
        machine = self.machine
        until = machine.now + duration
        while (event := machine.find_next_event()) is not None and event <= until:
            self._advance(event)
        self._advance(until)

    def _advance(self, to: int) -> None:
        """Let time pass; whatever is said in it was to be looked for by then."""
        self.read()
        known, word = len(self.raw), self.machine.find_next_output()
        self.machine.advance(to)
        self.read()
        assert len(self.raw) == known or (word is not None and word <= to)

    def stats(self) -> dict[str, int]:
        """Return the last sample."""
        answer = self.execute("qom-get", path="balloon0", property="guest-stats")
        stats: dict[str, int] = answer["stats"]
        return stats

    def named(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        """Return the events of one kind, with the times at which they came."""
        return [(at, event) for at, event in self.events if event["event"] == name]


def make(
    version: str = "10.0",
    guest: GuestConfig | None = None,
    **options: Any,  # noqa: ANN401
) -> Client:
    config = MachineConfig(**options, guest=guest or GuestConfig())
    return Client(Machine(config, profile(version), random.Random(1)))


def set_interval(client: Client, seconds: int) -> None:
    """Have QEMU ask the guest for statistics at an interval, in seconds."""
    where = {"path": "balloon0", "property": "guest-stats-polling-interval"}
    assert client.execute("qom-set", **where, value=seconds) == {}
