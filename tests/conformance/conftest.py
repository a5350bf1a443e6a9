"""Lets the tests in here share modules, and says how much they have compared."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

# Test files are imported by their paths; what they share is not a test file.
sys.path.insert(0, str(Path(__file__).parent))

import real

COMPARED = "requests compared with QEMU"


def pytest_configure(config: pytest.Config) -> None:
    """Tell whether a QEMU that cannot be had is a failure."""
    real.required = bool(config.getoption("require_qemu"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests with a real QEMU the time of those in tests/qemu."""
    for item in items:
        if item.get_closest_marker("conformance"):
            item.add_marker(pytest.mark.timeout(600))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the number of requests and of differences for each version."""
    requests: Counter[str] = Counter()
    differences: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == COMPARED and report.when == "call":
                    version, sent, differing = value
                    requests[version] += sent
                    differences[version] += differing
    for version, sent in requests.items():
        terminalreporter.write_line(
            f"QEMU {version}: {sent} requests compared, "
            f"{differences[version]} differences"
        )
