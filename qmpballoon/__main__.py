"""``python -m qmpballoon``: the command, also where its script is not on the PATH."""

from __future__ import annotations

from qmpballoon.cli import main

if __name__ == "__main__":
    main()
