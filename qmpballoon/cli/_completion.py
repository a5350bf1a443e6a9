"""What a shell completes: VMs that run on this host, and files.

click's own script for bash completes either files or what a command offers, and cannot
handle words with a colon. The script here does both, and handles colons.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    split_arg_string,
)

from qmpballoon._printable import make_printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

__all__ = ["complete_file", "complete_vm"]

_SCRIPT: Final = """\
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" word before="" kind value files
    # Bash cuts words at colons and equals signs: "$2" is the end of the word.
    word="${line##*[[:space:]]}"
    if [[ "$word" == *"$2" ]]; then before="${word%%"$2"}"; fi
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case "$kind" in
            plain) COMPREPLY+=("${value#"$before"}") ;;
            file) files=1 ;;
            dir) compopt -o dirnames ;;
        esac
    done < <(COMP_LINE="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
    if [[ "$files" && "${#COMPREPLY[@]}" == 0 ]]; then
        compopt -o default
    elif [[ "$files" ]]; then
        compopt -o filenames
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$2")
    fi
}
complete -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class _Bash(BashComplete):
    """Completion in bash, of files besides what a command offers."""

    source_template: ClassVar[str] = _SCRIPT

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one that is completed, and that one."""
        line = os.environ.get("COMP_LINE", "")  # a script of click's does not set it
        words = split_arg_string(line)[1:]
        if not words or line[-1].isspace():
            return words, ""
        return words[:-1], words[-1]


def complete_file(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """Let the shell complete a file."""
    return [CompletionItem(incomplete, type="file")]


def complete_vm(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """Offer the VMs that run on this host; let the shell complete sockets and files."""
    offered = [
        CompletionItem(address, help=name)
        for address, name in _list_vms()
        if address.startswith(incomplete) and address.isprintable()
    ]
    return [*offered, *complete_file(context, parameter, incomplete)]


def _list_vms() -> Iterator[tuple[str, str]]:
    """Yield addresses and names of the VMs on this host that we may manage."""
    from qmpballoon.fleet.processes import (  # noqa: PLC0415 - only for completion
        LIBVIRT,
        QemuProcess,
        choose_users,
        find_manager,
        find_processes,
    )

    with suppress(OSError):
        for found in find_processes(choose_users()):
            if not isinstance(found, QemuProcess):
                continue
            name = make_printable(found.name)
            managers = {find_manager(each.address) for each in found.monitors}
            if (monitor := found.choose_monitor()) is not None:
                yield str(monitor.address), name
            elif LIBVIRT in managers:
                yield f"libvirt:{found.name}", name
