"""Record what a real QEMU answers, for where there is none.

Not a test: run it by hand when the requests have changed::

    python tests/conformance/record.py 7.2 > tests/conformance/recorded-7.2.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from real import qemu_command, real_qemu
from transcripts import Script, list_descriptors, normalise, say, scripts

from qmpballoon.testing import profile

# Long lists of properties and counters, and what needs sockets: held by the tests with
# a real QEMU.
LEFT_OUT = (
    "disks",
    "balloon",
    "objects",
    "types",
    "queries",
    "garbage",
    "deep",
    "limits",
    "DIMMs",
    "several",
    "descriptors",
    "character devices",
)


def recorded_scripts() -> list[Script]:
    """Return the scripts that are recorded."""
    return [
        script
        for script in scripts()
        if not any(word in script.name for word in LEFT_OUT)
        or script.name in {"no balloon", "the balloon's size"}
    ]


def record(script: Script, version: str, folder: Path) -> list[list[str]]:
    """Return a real QEMU's answers to each chunk, normalised."""
    session = script.machine(profile(version)).connect()
    answers: list[list[str]] = []
    with real_qemu(qemu_command(version), folder, script.options()) as real:
        for chunk in (b"", *script.chunks):
            say(session, chunk)
            real.send(chunk, list_descriptors(chunk))
            # The fake tells how much to wait for; what comes is QEMU's.
            count = session.take_output().count(b"\n")
            said = real.receive_all() if session.closed else real.receive(count)
            answers.append(list(normalise(said)))
            if real.closed:
                break
    return answers


def main(version: str) -> None:
    """Record all scripts; one answer a line."""
    with tempfile.TemporaryDirectory() as folder:
        found = {
            script.name: record(script, version, Path(folder))
            for script in recorded_scripts()
        }
    json.dump(found, sys.stdout, indent=0)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
