"""The same requests to a real QEMU and to the fake, and what differs.

Each chunk goes to the fake first: it tells how many lines to wait for from the real
one. QEMU answers in order. So a line too many is seen before the answers to the next
chunk, and the last chunk is one that is always answered: nobody has to wait in order
to see that no more comes.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from real import real_qemu

from qmpballoon.testing import GuestConfig, Machine, MachineConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qmpballoon.testing import Profile, Session

MEMORY = 512 << 20
SLOTS = 2
MAX_MEMORY = 2 << 30
NEGOTIATION = b'{"execute": "qmp_capabilities"}'
# Begins anew wherever the parser is, and has an answer whether negotiated or not.
END = b'\n\x01\n{"execute": "query-status", "id": "the end"}'

_VARIABLE = (
    (re.compile(r'"(seconds|microseconds|micro|thread-id)": \d+'), r'"\1": 0'),
    (re.compile(r'"package": "[^"]*"'), '"package": ""'),
    # Where the monitor's socket is.
    (re.compile(r'unix:[^",]+,server=on"'), 'unix:PATH,server=on"'),
    (re.compile(r'"path": "[^"]*", "type": "unix"'), '"path": "", "type": "unix"'),
    # As the human monitor prints it.
    (re.compile(r'("return": "\d+\.\d+)\.\d+[^"]*"'), r'\1"'),
    # In a module of QEMU's that distributions ship as a package of its own.
    (re.compile(r'\{"name": "virtio-gpu-gl-[^}]*\}, '), ""),
    (re.compile(r', \{"name": "virtio-gpu-gl-[^}]*\}'), ""),
)


class Chunk(bytes):
    """Bytes, and the kinds of the file descriptors that go with them.

    ``socket`` is one end of a connection, ``closed`` one whose other end is closed,
    ``file`` no socket.
    """

    descriptors: tuple[str, ...] = ()


@frozen
class FakeDescriptor:
    """A descriptor as the model sees it."""

    kind: str

    @property
    def is_socket(self) -> bool:
        return self.kind != "file"

    @property
    def is_connected(self) -> bool:
        return self.kind == "socket"

    def close(self) -> None:
        pass


def list_descriptors(chunk: bytes) -> list[str]:
    """Return the kinds of the descriptors that go with a chunk."""
    return list(chunk.descriptors) if isinstance(chunk, Chunk) else []


@frozen
class Script:
    """Bytes for a fresh VM, chunk by chunk."""

    name: str
    chunks: tuple[bytes, ...]
    balloon: str | None = "virtio-balloon-pci"
    id: str | None = "balloon0"
    features: tuple[str, ...] = ()
    dimms: bool = False
    disks: int = 0

    def options(self) -> list[str]:
        """Return the real QEMU's options."""
        room = f",slots={SLOTS},maxmem={MAX_MEMORY >> 20}M" if self.dimms else ""
        options = ["-m", f"{MEMORY >> 20}M{room}"]
        if self.balloon:
            parts = [self.balloon, *([f"id={self.id}"] if self.id else [])]
            parts += [f"{feature}=on" for feature in self.features]
            options += ["-device", ",".join(parts)]
        for number in range(self.disks):
            name = f"disk{number}"
            node = f"driver=null-co,node-name={name},size={MEMORY},read-zeroes=on"
            options += ["-blockdev", node, "-device", f"virtio-blk-pci,drive={name}"]
        return options

    def machine(self, version: Profile) -> Machine:
        """Return the same VM, simulated."""
        config = MachineConfig(
            memory=MEMORY,
            slots=SLOTS if self.dimms else 0,
            max_memory=MAX_MEMORY if self.dimms else 0,
            balloon=self.balloon,
            balloon_id=self.id,
            deflate_on_oom="deflate-on-oom" in self.features,
            free_page_reporting="free-page-reporting" in self.features,
            disks=self.disks,
            paused=True,
            guest=GuestConfig(driver=False),
        )
        return Machine(config, version, random.Random(0))


@frozen
class Difference:
    """A chunk that the two answer differently."""

    script: str
    chunk: bytes
    real: tuple[str, ...]
    fake: tuple[str, ...]


def scripts() -> list[Script]:
    """Return the scripts of ``requests.toml``."""
    path = Path(__file__).parent / "requests.toml"
    return [_script(entry) for entry in tomllib.loads(path.read_text())["script"]]


def _script(entry: dict[str, Any]) -> Script:
    chunks = [_chunk(chunk) for chunk in entry["send"]]
    if entry.get("negotiate", True):
        chunks.insert(0, NEGOTIATION)
    vm: dict[str, Any] = {
        key: value or None for key, value in entry.get("vm", {}).items()
    }
    vm["features"] = tuple(vm.get("features", ()))
    return Script(entry["name"], tuple(chunks), **vm)


def _chunk(chunk: str | dict[str, Any]) -> bytes:
    if isinstance(chunk, dict) and "descriptors" in chunk:
        result = Chunk(_chunk(chunk["send"]))
        result.descriptors = tuple(chunk["descriptors"])
        return result
    if isinstance(chunk, dict):
        middle = chunk["repeat"] * chunk["times"]
        chunk = f"{chunk.get('before', '')}{middle}{chunk.get('after', '')}"
    return chunk.encode("latin-1")


def say(session: Session, chunk: bytes) -> None:
    """Say a chunk to the fake, with its descriptors."""
    session.receive(chunk, [FakeDescriptor(kind) for kind in list_descriptors(chunk)])


def compare(
    script: Script, version: Profile, command: Sequence[str], folder: Path
) -> Iterator[Difference]:
    """Run a script on both sides; yield what differs.

    Args:
        script: What is said.
        version: The fake's profile.
        command: Starts the real QEMU.
        folder: For its socket.
    """
    session = script.machine(version).connect()
    with real_qemu(command, folder, script.options()) as real:
        for chunk in (b"", *script.chunks, END):
            say(session, chunk)
            faked = session.take_output()
            real.send(chunk, list_descriptors(chunk))
            count = faked.count(b"\n")
            said = real.receive_all() if session.closed else real.receive(count)
            lines = normalise(said), normalise(faked)
            if lines[0] != lines[1] or real.closed != session.closed:
                yield Difference(script.name, chunk, *lines)
            if real.closed or session.closed:
                return


def replay(
    script: Script, version: Profile, recorded: Sequence[Sequence[str]]
) -> Iterator[Difference]:
    """Run a script on the fake alone; yield what differs from a recorded transcript.

    Args:
        script: What is said.
        version: The fake's profile.
        recorded: A real QEMU's normalised answers to each chunk, greeting first.
    """
    session = script.machine(version).connect()
    chunks = (b"", *script.chunks)
    for chunk, real in zip(chunks[: len(recorded)], recorded, strict=True):
        say(session, chunk)
        faked = normalise(session.take_output())
        if tuple(real) != faked:
            yield Difference(script.name, chunk, tuple(real), faked)


def normalise(said: bytes) -> tuple[str, ...]:
    """Return lines without what differs between any two QEMUs."""
    text = said.decode("ascii")
    for pattern, replacement in _VARIABLE:
        text = pattern.sub(replacement, text)
    return tuple(_sorted(line) for line in text.split("\r\n"))


def _sorted(line: str) -> str:
    """Return a line with properties, types and character devices in order of names.

    QEMU keeps them in a hash table whose order is nobody's promise.
    """
    if not line.startswith('{"return": [{'):
        return line
    message = json.loads(line)
    message["return"] = _in_order(message["return"])
    return json.dumps(message)


def _in_order(value: object) -> object:
    if isinstance(value, dict) and "properties" in value:
        return {**value, "properties": _in_order(value["properties"])}
    if not isinstance(value, list):
        return value
    items: list[Any] = [_in_order(item) for item in value]
    if items and all(isinstance(i, dict) and {"name", "type"} & {*i} for i in items):
        return sorted(items, key=lambda item: str(item.get("name")))
    for key in ("label", "id"):
        if items and all(isinstance(item, dict) and key in item for item in items):
            return sorted(items, key=lambda item: str(item[key]))
    return items
