"""What the README shows is there: its names, its commands, its files."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from configparser import ConfigParser
from pathlib import Path

import pytest

from qmpballoon import GiB
from qmpballoon.testing import GuestConfig, MachineConfig, serve

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    assert found, f"no {language} in the README"
    return found


def command_lines() -> list[str]:
    """Return every line of the README's shell blocks, without comments."""
    lines = "".join(blocks("sh")).splitlines()
    return [line.partition("#")[0].strip() for line in lines]


def test_the_program_reclaims(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = blocks("python")
    guest = GuestConfig(
        cache=GiB, inflate_rate=20 * GiB, reclaim_rate=20 * GiB, deflate_rate=20 * GiB
    )
    with serve(MachineConfig(guest=guest)) as fake:
        exec(source.replace("/run/vm1.qmp", fake.socket), {})  # noqa: S102
    assert re.fullmatch(r"done: 1\.\d GiB handed over\n", capsys.readouterr().out)


@pytest.mark.parametrize("line", command_lines())
def test_shell_commands_exist(line: str) -> None:
    program, *arguments = shlex.split(line)
    if arguments[0].endswith(".py"):
        script = (README.parent / arguments[0]).read_text(encoding="utf-8")
        assert f'"{arguments[1]}":' in script, "the script does not know the command"
    scripts = sysconfig.get_path("scripts")
    assert shutil.which(program) or shutil.which(program, path=scripts)


@pytest.mark.parametrize(
    "line", [line for line in command_lines() if "qmpballoon " in line]
)
def test_subcommands_exist(line: str) -> None:
    subcommand = line.partition("qmpballoon ")[2].split()[0]
    program = "import qmpballoon.cli as cli; cli.main()"
    result = subprocess.run(
        [sys.executable, "-c", program, subcommand, "--help"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert f"{subcommand} " in result.stdout


@pytest.mark.parametrize("page", re.findall(r"\]\((docs/[^)#]+\.md)", TEXT))
def test_linked_pages_can_be_read_in_a_clone(page: str) -> None:
    text = (README.parent / page).read_text(encoding="utf-8")
    assert "{eval-rst}" not in text, "its text is made when the HTML is built"


@pytest.mark.parametrize(
    "case", ["Ctrl-C", "is killed", "it lies", "holds the monitor"]
)
def test_what_happens_to_a_guest_is_answered_with_a_link(case: str) -> None:
    rows = re.findall(rf"^\| .*{case}.* \| (.+) \|$", TEXT, re.MULTILINE)
    assert [re.search(r"\]\(docs/[^)]+#?", row) is not None for row in rows] == [True]


def test_building_the_documentation_ends_with_where_it_is() -> None:
    tox = ConfigParser(interpolation=None)
    tox.read(README.parent / "tox.ini", encoding="utf-8")
    # An environment's temporary folder, as tox names it.
    lines = tox["testenv:docs"]["commands"].replace("{env_tmp_dir}", ".tox/docs/tmp")
    build, show = (shlex.split(line) for line in lines.strip().splitlines())
    folder = build[-2].replace("{/}", "/")
    done = subprocess.run(
        [sys.executable, *(word.replace("{/}", "/") for word in show[1:])],
        check=True,
        capture_output=True,
        text=True,
    )
    assert show[0] == "python"
    assert done.stdout.split()[-1] == f"{folder}/index.html"
    assert f"`{folder}`" in TEXT
