"""The bootstrap, without a network: pip and the environment's maker are stood in for.

That it works on a bare machine is seen by running it on one.
"""

from __future__ import annotations

import configparser
import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).parent.parent / ".ci" / "bootstrap.py"


class Bootstrap:
    """The script at work on a checkout of its own, and what it had done."""

    def __init__(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        self.script: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.script)
        self.pyproject = checkout / "pyproject.toml"
        self.pyproject.write_text("[build-system]\n[project]\n", encoding="utf-8")
        self.venv = checkout / ".venv"
        self.done: list[str] = []
        monkeypatch.setattr(self.script, "CHECKOUT", checkout)
        monkeypatch.setattr(self.script, "VENV", self.venv)
        monkeypatch.setattr(self.script, "PYTHON", self.venv / "bin" / "python")
        monkeypatch.setattr(self.script, "pip", self.pip)
        monkeypatch.setattr(self.script, "make_venv", self.make_venv)

    def pip(self, *_: str) -> None:
        self.done.append("install")

    def make_venv(self) -> None:
        self.done.append("make")
        venv.create(self.venv, clear=True, symlinks=True)

    def prepare(self) -> list[str]:
        """Prepare for tox once, and return what was done for it."""
        self.done = []
        self.script.prepare("tox")
        return self.done


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bootstrap:
    return Bootstrap(tmp_path, monkeypatch)


def test_second_start_does_nothing(bootstrap: Bootstrap) -> None:
    assert bootstrap.prepare() == ["make", "install"]
    assert bootstrap.prepare() == []


def test_half_made_environment_is_made_again(
    bootstrap: Bootstrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_make() -> None:
        bootstrap.make_venv()
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(bootstrap.script, "make_venv", half_make)
        with pytest.raises(OSError, match="no space"):
            bootstrap.prepare()
    assert bootstrap.prepare() == ["make", "install"]


def test_failed_installation_is_repeated(
    bootstrap: Bootstrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: str) -> None:
        raise subprocess.CalledProcessError(1, ["pip"])

    with monkeypatch.context() as broken:
        broken.setattr(bootstrap.script, "pip", fail)
        with pytest.raises(subprocess.CalledProcessError):
            bootstrap.prepare()
    assert bootstrap.prepare() == ["install"]


def test_lost_interpreter_makes_a_new_environment(bootstrap: Bootstrap) -> None:
    bootstrap.prepare()
    (bootstrap.venv / "bin" / "python").unlink()
    assert bootstrap.prepare() == ["make", "install"]


def test_installs_again_when_the_project_needs_something_else(
    bootstrap: Bootstrap,
) -> None:
    bootstrap.prepare()
    with bootstrap.pyproject.open("a", encoding="utf-8") as file:
        file.write('dependencies = ["attrs"]\n')
    assert bootstrap.prepare() == ["install"]


def test_configuration_of_tools_does_not_matter(bootstrap: Bootstrap) -> None:
    bootstrap.prepare()
    with bootstrap.pyproject.open("a", encoding="utf-8") as file:
        file.write("[tool.ruff]\nline-length = 99\n")
    assert bootstrap.prepare() == []


@pytest.mark.parametrize("arguments", [[], ["pip"]])
def test_unknown_command_is_refused_in_one_line(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert result.stderr.count("\n") == 1
    assert "qmpballoon,tox" in result.stderr


def test_old_python_is_refused_in_one_line(
    bootstrap: Bootstrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9))
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(SystemExit, match=r"^bootstrap: Python 3\.11 or later.*$"):
        bootstrap.script.ensure_python()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["tox"], ["run-parallel", "--parallel", "3", "--parallel-no-spinner"]),
        (["tox", "-e", "docs"], ["-e", "docs"]),
        (["qmpballoon"], []),
    ],
)
def test_tox_without_arguments_runs_everything_side_by_side(
    bootstrap: Bootstrap,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    told: list[str],
) -> None:
    become: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", *given])
    monkeypatch.setattr(os, "execv", lambda *arguments: become.append(arguments))
    bootstrap.script.main()
    program = bootstrap.venv / "bin" / given[0]
    assert become == [(str(program), [given[0], *told])]


def test_every_environment_has_a_budget() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(SCRIPT.parent.parent / "tox.ini")
    for name in tox["tox"]["env_list"].replace(" ", "").split(","):
        section = tox["testenv" if name == "tests" else f"testenv:{name}"]
        assert int(section["budget"]) > 0
