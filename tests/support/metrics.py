"""The page of metrics, read as Prometheus reads it."""

from __future__ import annotations

import re
import urllib.request
from typing import TYPE_CHECKING

import trio
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.samples import Sample

__all__ = ["figures", "state", "url_of"]


async def url_of(stream: trio.abc.ReceiveStream) -> str:
    """Return where the command says that it serves its metrics."""
    text = ""
    with trio.fail_after(300):
        while not (found := re.search(r"(http://127\.0\.0\.1:\d+/metrics)\n", text)):
            text += (await stream.receive_some()).decode()
    return found[1]


async def figures(url: str) -> dict[str, dict[str, float]]:
    """Return each VM's metrics by their names; the host's are those of ``""``.

    Of a metric that has a value for each state it has that of the state, as in
    ``qmpballoon_vm_state:healthy``.
    """
    found: dict[str, dict[str, float]] = {}
    for sample in await trio.to_thread.run_sync(lambda: list(_samples(url))):
        vm, name = sample.labels.get("vm", ""), sample.name
        if name in sample.labels:
            name = f"{name}:{sample.labels[name]}"
        found.setdefault(vm, {})[name] = sample.value
    return found


def state(metrics: dict[str, float]) -> str:
    """Return the state that a VM's metrics tell."""
    prefix = "qmpballoon_vm_state:"
    (name,) = [
        name for name, value in metrics.items() if name.startswith(prefix) and value
    ]
    return name.removeprefix(prefix)


def _samples(url: str) -> Iterator[Sample]:
    with urllib.request.urlopen(url, timeout=300) as answer:  # noqa: S310 - our own
        text: bytes = answer.read()
    for family in text_string_to_metric_families(text.decode()):
        yield from family.samples
