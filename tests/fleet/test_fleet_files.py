"""The dashboard and the alerts ask for metrics that there are, and all are documented.

What they ask in, and the page itself, Prometheus' own ``promtool`` checks. Where it is
not installed that is skipped; with ``CI`` set in the environment it is a failure.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pages import SEEN, page
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs" / "howto"
DASHBOARD = DOCS / "fleet-files" / "dashboard.json"
ALERTS = DOCS / "fleet-files" / "alerts.yml"


def served() -> set[str]:
    """Return the names of all metrics, as queries write them."""
    ends = {"counter": "_total", "info": "_info"}
    families = text_string_to_metric_families(page(SEEN))
    return {
        family.name.removesuffix(end := ends.get(family.type, "")) + end
        for family in families
    }


def documented() -> set[str]:
    """Return the names in the first column of the how-to's table."""
    rows = re.findall(
        r"^\| (`.*`) \|", (DOCS / "exporter.md").read_text(), re.MULTILINE
    )
    patterns = itertools.chain(*(re.findall(r"`(.*?)`", row) for row in rows))
    return {f"qmpballoon_{name}" for text in patterns for name in spelled_out(text)}


def spelled_out(text: str) -> Iterator[str]:
    """Write ``a_{b,c}`` out as ``a_b`` and ``a_c``."""
    before, brace, rest = text.partition("{")
    if not brace:
        yield text
        return
    choices, _, after = rest.partition("}")
    for choice in choices.split(","):
        yield from spelled_out(before + choice + after)


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def asked_for(text: str) -> set[str]:
    """Return the metrics that queries name; a label may be called like its metric."""
    without_labels = re.sub(r"\{.*?\}|by \(.*?\)", "", text)
    return set(re.findall(r"qmpballoon_\w+", without_labels))


def test_every_metric_is_documented_and_no_other() -> None:
    assert documented() == served()


def test_the_dashboard_asks_for_what_there_is() -> None:
    asked = set().union(*map(asked_for, queries()))
    assert asked
    assert asked <= served()
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    for variable in variables[1:]:
        name = re.search(r"qmpballoon_\w+", variable["query"]["query"])
        assert name is not None
        assert name[0] in served()


def test_the_dashboards_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels())
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24  # Grafana's columns
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))


def test_the_alerts_ask_for_what_there_is() -> None:
    expressions = re.findall(r"expr: (.*)", ALERTS.read_text())
    assert expressions
    assert set().union(*map(asked_for, expressions)) <= served()


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        reason = "promtool is not installed: it is in Debian's package prometheus"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found


def check(promtool: str, what: str, *files: Path, given: str = "") -> str:
    done = subprocess.run(
        [promtool, "check", what, *files],
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_promtool_has_nothing_to_say_about_the_page(promtool: str) -> None:
    assert check(promtool, "metrics", given=page(SEEN)) == ""


def test_promtool_understands_the_alerts(promtool: str) -> None:
    assert "SUCCESS: 6 rules found" in check(promtool, "rules", ALERTS)


def test_promtool_understands_what_the_dashboard_asks(
    promtool: str, tmp_path: Path
) -> None:
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$instance", ".*")}
        for number, query in enumerate(queries())
    ]
    path = tmp_path / "rules.yml"
    # JSON is YAML, too.
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    said = check(promtool, "rules", path)
    assert f"SUCCESS: {len(rules)} rules found" in said
