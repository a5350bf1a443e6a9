"""A plugin for tox, which loads it by its name: budgets of time.

Each environment in ``tox.ini`` has a budget in seconds. After tox's own report a table
says how much of it each environment has used. None fails for it: how long a thing
takes says more about the machine than about the change.
"""

from __future__ import annotations

import atexit
import time
from typing import TYPE_CHECKING

from tox.plugin import impl

if TYPE_CHECKING:
    from tox.config.sets import EnvConfigSet
    from tox.execute import Outcome
    from tox.session.state import State
    from tox.tox_env.api import ToxEnv
    from tox.tox_env.installer import InstallArguments

BEGUN: dict[str, float] = {}
USED: dict[str, tuple[float, int]] = {}


@impl
def tox_add_env_config(env_conf: EnvConfigSet, state: State) -> None:
    """Let environments have a budget."""
    del state
    env_conf.add_config(
        "budget",
        of_type=int,
        default=0,
        desc="seconds that the environment should need at most, on two cores",
    )


@impl
def tox_on_install(
    tox_env: ToxEnv, arguments: InstallArguments, section: str, of_type: str
) -> None:
    """Note when an environment begins, if it installs something."""
    del arguments, section, of_type
    BEGUN.setdefault(tox_env.conf.name, time.monotonic())


@impl
def tox_before_run_commands(tox_env: ToxEnv) -> None:
    """Note when an environment begins, if it installs nothing."""
    BEGUN.setdefault(tox_env.conf.name, time.monotonic())


@impl
def tox_after_run_commands(
    tox_env: ToxEnv, exit_code: int, outcomes: list[Outcome]
) -> None:
    """Note how long an environment has taken."""
    del exit_code, outcomes
    name = tox_env.conf.name
    USED[name] = (time.monotonic() - BEGUN[name], tox_env.conf["budget"])


@atexit.register
def print_table() -> None:
    """Print what was used, beside what was to be."""
    if USED:
        print(f"\n{'':<12}{'seconds':>8}{'budget':>8}")
    for name, (used, budget) in USED.items():
        over = "  over" if used > budget else ""
        print(f"{name:<12}{used:>8.0f}{budget:>8}{over}")
