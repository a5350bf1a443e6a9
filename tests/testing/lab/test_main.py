"""The command ``python -m qmpballoon.testing.lab``: what it refuses."""

from __future__ import annotations

import pytest

from qmpballoon.testing.lab.__main__ import main


@pytest.mark.parametrize("size", ["1.5G!", "50x", "-1", "50%"])
def test_the_command_refuses_sizes(
    size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"--memory={size}"])
    assert ended.value.code == 2
    assert size in capsys.readouterr().err


def test_the_command_says_in_one_line_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--qemu", "/nowhere/qemu"]) == 1
    assert main(["--memory=1G", "--cache=99G"]) == 1
    assert main(["--cpus=0"]) == 1
    said = capsys.readouterr().err
    assert "cannot be run as a QEMU" in said
    assert "must be less than that, and not 99 GiB" in said
    assert said.count("\n") == 3
