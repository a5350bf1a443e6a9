"""What the README shows is there: its names, its commands, its files."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from configparser import ConfigParser
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("source", blocks("python"))
def test_python_imports_what_exists(source: str) -> None:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name)


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
