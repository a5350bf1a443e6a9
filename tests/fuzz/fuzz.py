"""Fuzz with a fuzzer that is guided by coverage; options are those of libFuzzer.

    tox -e fuzz -- decoder -max_total_time=600

Inputs that reach something new are added to ``tests/fuzz/corpus``; what is there is
replayed by ``test_corpus.py`` with every run of the tests.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["qmpballoon", "json"]):
    from targets import TARGETS

HERE = Path(__file__).parent
MARKS = ["{", "}", "[", "]", '"', "\\", ",", ":", "QMP", "return", "error", "event"]
WORDS = ["class", "desc", "id", "timestamp", "execute", "arguments", "exec-oob"]


def main() -> None:
    """Fuzz one target until told otherwise."""
    name, *options = sys.argv[1:]
    dictionary = Path(tempfile.mkdtemp(), "words")
    words = [word.replace("\\", "\\\\").replace('"', '\\"') for word in MARKS + WORDS]
    dictionary.write_text("".join(f'"{word}"\n' for word in words))
    corpus = str(HERE / "corpus" / name)
    arguments = [f"-dict={dictionary}", "-max_len=600", *options, corpus]
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
