"""docs/metrics.md and deploy/alerts.yml against what a server registers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client import ProcessCollector

from bll_server.metrics import Metrics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text()
ALERTS = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())


class Row(NamedTuple):
    """Of a metric, as the page and the registry have it."""

    kind: str
    labels: tuple[str, ...]
    meaning: str


def told() -> dict[str, tuple[Row, str]]:
    """The rows of the page by metric, each with its alert."""
    found: dict[str, tuple[Row, str]] = {}
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            name, kind, labels, _, meaning, alert = (cell.strip() for cell in line.strip("|").split("|"))
            row = Row(kind, tuple(filter(None, labels.split(", "))), meaning)
            assert found.setdefault(name.strip("`"), (row, alert)) == (row, alert)
    return found


def registered() -> Iterator[tuple[str, Row]]:
    metrics = Metrics()
    metrics.jobs.count(dict)
    metrics.datasets.count(dict)
    collectors: Any = metrics.registry._collector_to_names
    for collector in collectors:
        if isinstance(collector, ProcessCollector):
            continue
        for family in collector.describe():
            labels: Any = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield name, Row(family.type, tuple(labels), family.documentation)


@pytest.fixture(scope="module")
def process_metrics() -> set[str]:
    return {sample.name for family in ProcessCollector(registry=None).collect() for sample in family.samples}


def test_the_page_has_every_metric_as_it_is_registered_and_no_other() -> None:
    assert {name: row for name, (row, _) in told().items()} == dict(registered())


def test_the_page_names_the_metrics_of_the_process(process_metrics: set[str]) -> None:
    assert set(re.findall(r"`(process_\w+)`", PAGE)) == process_metrics


def test_every_alert_reads_the_metrics_that_the_page_says_and_no_unknown_one(process_metrics: set[str]) -> None:
    by_alert: dict[str, set[str]] = {}
    for name, (_, alert) in told().items():
        if alert:
            by_alert.setdefault(alert, set()).add(name)
    rules = {rule["alert"]: rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]}
    others = {"BllDown": {"up"}, "BllFilesRunOut": {"process_open_fds", "process_max_fds"}}
    read = {
        alert: {name.removesuffix("_bucket") for name in re.findall(r"\b(up|(?:bll|grpc|process)_\w+)\b", expr)}
        - {"grpc_method", "grpc_code"}
        for alert, expr in rules.items()
    }
    assert read == by_alert | others
    assert others["BllFilesRunOut"] <= process_metrics
