#!/usr/bin/env python3
"""Run a command of this checkout on a machine that has nothing but Python.

    python3 .ci/bootstrap.py qmpballoon ARGUMENTS...
    python3 .ci/bootstrap.py tox ARGUMENTS...

Makes a virtual environment in ``.venv``, installs what the command needs into it,
and becomes the command. tox without arguments runs every check, three environments
side by side. What is there already and still right is kept, so the second start is
quick. Nothing outside the checkout is written, but for the caches of pip and uv;
root is not needed and not used.

Debian and its like split the part of Python that puts pip into a virtual
environment (ensurepip) into a package of its own, and refuse installations into
the system's Python. Where that part is missing, this script unpacks pip from the
distribution's own package, into the virtual environment only.

Written for Python 3.6, so that an older Python gets a sentence instead of a
syntax error.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OLDEST, NEWEST = 11, 14  # Python 3.x

CHECKOUT = Path(__file__).resolve().parent.parent
VENV = CHECKOUT / ".venv"
PYTHON = VENV / "bin" / "python"

# What pip is asked to install for each command.
COMMANDS = {
    "qmpballoon": ["--editable", f"{CHECKOUT}[cli,charts,prometheus,web,cluster]"],
    # With tox-uv: eight environments take a fifth of the time.
    "tox": ["tox>=4.22", "tox-uv>=1.25"],
}

# What each command is told where nothing else is said: to run every check. The two
# environments that take longest go on from the beginning to the end, and beside them
# one after another of the rest: with more at a time, nothing ends sooner, and tests
# that wait for guests and deadlines wait for processors too.
DEFAULTS = {"tox": ["run-parallel", "--parallel", "3", "--parallel-no-spinner"]}

NO_PIP = (
    "this Python has neither ensurepip nor an apt-get to fetch pip with: "
    "install the package of your distribution that has ensurepip (python3-venv, say)"
)


def main() -> None:
    """Make ready what the command needs, and become it."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        fail(f"usage: {sys.argv[0]} {{{','.join(COMMANDS)}}} [ARGUMENTS...]")
    ensure_python()
    try:
        with_lock(command)
        arguments = sys.argv[2:] or DEFAULTS.get(command, [])
        os.execv(str(VENV / "bin" / command), [command, *arguments])
    except subprocess.CalledProcessError as error:
        fail(f"{Path(error.cmd[0]).name} failed, see above: {' '.join(error.cmd)}")
    except OSError as error:
        fail(str(error))


def ensure_python() -> None:
    """Go on with a Python that is new enough, or say that there is none."""
    if sys.version_info >= (3, OLDEST):
        return
    for minor in range(NEWEST, OLDEST - 1, -1):
        python = shutil.which(f"python3.{minor}")
        # Tried first: a version manager's stand-in may be found, and then refuse.
        if (
            python
            and subprocess.call([python, "-c", ""], stderr=subprocess.DEVNULL) == 0
        ):
            os.execv(python, [python, *sys.argv])
    fail(
        f"Python 3.{OLDEST} or later is needed, this is {sys.version.split()[0]}: "
        f"install one (a package python3.{OLDEST}, say) and start this script with it"
    )


def with_lock(command: str) -> None:
    """Prepare for the command while nobody else does so in this checkout."""
    checkout = os.open(str(CHECKOUT), os.O_RDONLY)
    try:
        fcntl.flock(checkout, fcntl.LOCK_EX)
        prepare(command)
    finally:
        os.close(checkout)


def prepare(command: str) -> None:
    """Bring the virtual environment up to date for the command.

    Each step leaves a mark when it is through, which says what it was done for: a
    step without its mark, or with another's, is done again.
    """
    made, made_for = VENV / ".made", f"{sys.version}\n{VENV}\n"
    if read(made) != made_for or not PYTHON.exists():
        make_venv()
        made.write_text(made_for, encoding="utf-8")
    installed, wanted = VENV / f".installed-{command}", fingerprint(command)
    if read(installed) != wanted:
        say(f"installing {command} and what it needs (a minute, the first time)")
        pip("install", "--quiet", *COMMANDS[command])
        installed.write_text(wanted, encoding="utf-8")


def make_venv() -> None:
    """Make the virtual environment, with pip in it, in place of any other."""
    say(f"making {VENV} with Python {sys.version.split()[0]}")
    try:
        import venv  # noqa: PLC0415 (not in every distribution's smallest Python)
    except ImportError:
        fail(NO_PIP)
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    venv.create(str(VENV), clear=True, symlinks=True, with_pip=has_ensurepip)
    if not has_ensurepip:
        install_distribution_pip()


def install_distribution_pip() -> None:
    """Install pip into the virtual environment from the distribution's package."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        fail(NO_PIP)
    say("fetching pip from the distribution's package python3-pip-whl")
    with tempfile.TemporaryDirectory(dir=str(VENV)) as folder:
        wheel = fetch_pip_wheel(Path(folder))
        # A wheel is a zip file, and pip runs from inside it: it installs itself.
        run(PYTHON, wheel / "pip", "install", "--quiet", "--no-index", wheel)


def fetch_pip_wheel(folder: Path) -> Path:
    """Download and unpack the distribution's pip wheel into the folder."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "archives" / "partial").mkdir(parents=True)
    apt_get = [
        "apt-get",
        "-qq",
        # The package lists are fetched anew and kept here: those of the machine may
        # be missing or old, and are not ours to write.
        f"--option=Dir::State::Lists={folder / 'lists'}",
        f"--option=Dir::Cache={folder}",
        # As root, apt would fetch as a user who may not write here.
        "--option=APT::Sandbox::User=root",
    ]
    # Some other source that is out of order is no reason to give up: whether the
    # package can be had is seen when it is asked for.
    subprocess.call([*apt_get, "update"], cwd=str(folder), stdout=sys.stderr)
    run(*apt_get, "download", "python3-pip-whl", cwd=folder)
    (package,) = folder.glob("*.deb")
    run("dpkg-deb", "--extract", package, folder)
    (wheel,) = folder.glob("usr/share/python-wheels/pip-*.whl")
    return wheel


def fingerprint(command: str) -> str:
    """Digest all that a change of calls for a new installation."""
    # Not in every Python that this script has to be read by.
    import tomllib  # noqa: PLC0415

    text = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    metadata = tomllib.loads(text)
    wanted = [COMMANDS[command], metadata["build-system"], metadata["project"]]
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()


def pip(*arguments: str) -> None:
    """Run the virtual environment's pip."""
    run(PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments)


def run(*command: object, cwd: Path = CHECKOUT) -> None:
    """Run a command to its end; standard output is the real command's, so not here."""
    words = [str(word) for word in command]
    subprocess.run(words, cwd=str(cwd), stdout=sys.stderr, check=True)


def read(path: Path) -> str:
    """Return a file's text, empty where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def say(message: str) -> None:
    """Tell what is being done."""
    print(f"bootstrap: {message}", file=sys.stderr, flush=True)


def fail(message: str) -> None:
    """Give up, with one line that says what to do."""
    sys.exit(f"bootstrap: {message}")


if __name__ == "__main__":
    main()
