"""The rules for Prometheus and the dashboard for Grafana, held to the metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from django.test import Client
from django.utils import timezone

from controlplane.operations.monitoring.metrics import Collected
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.usage.models import CheckpointRun
from enforcement import Limiter
from enforcement.exporters.prometheus import SluicegateCollector
from tests.factories import ModelPriceFactory
from tests.repository import ROOT
from tests.requires import require

FOLDER = ROOT / "docker" / "monitoring"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())
RULES_TEST = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
# What Prometheus adds to each series, and the bound of a histogram's bucket.
ADDED = {"instance", "job", "le"}
SELECTED = re.compile(r"\b(up\b|sluicegate[a-z_]*(?::[a-z0-9_:]+)?)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\bby \(([a-z_, ]+)\)")


@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "rules.yaml"), ("check", "config", "prometheus.yaml"), ("test", "rules", "rules_test.yaml")],
    ids=lambda arguments: " ".join(arguments),
)
def test_promtool_accepts(arguments: tuple[str, ...]) -> None:
    """Also what the rules make of invented series."""
    promtool = require(shutil.which("promtool"), "promtool is missing: install it with 'apt-get install prometheus'.")

    done = subprocess.run([promtool, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> Iterator[tuple[str, str]]:
    """Yield the name and the expression of each rule and of each line of a chart."""
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@pytest.fixture
def labels(store, db) -> dict[str, set[str]]:
    """Return the labels of each metric that a process or the control plane has, and of what the rules record."""
    now = timezone.now()
    Revision.objects.create(number=1, is_counted=True, lag_ms=5)
    CheckpointRun.objects.create(at=now, counters=1)
    ModelPriceFactory()
    with Limiter(store.url) as limiter:
        families = [*SluicegateCollector(limiter, time_store_calls=True).collect(), *Collected(now).collect()]
    found = {
        family.name + ending: set(family._labelnames)
        for family in families
        for ending in {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
    }
    found["up"] = ADDED  # of Prometheus itself
    return found | {
        rule["record"]: set(re.split(r",\s*", GROUPED.search(rule["expr"])[1])) if " by " in rule["expr"] else set()
        for group in RULES["groups"]
        for rule in group["rules"]
        if "record" in rule
    }


def test_each_expression_reads_metrics_and_labels_that_there_are(labels) -> None:
    """A metric that was renamed would leave an alert silent for ever."""
    checked = 0
    for name, expression in expressions():
        selected = SELECTED.findall(expression)
        assert selected, name
        known = set(ADDED)
        for metric, matchers in selected:
            assert metric in labels, f"{name}: there is no {metric}"
            known |= labels[metric]
            for label in re.findall(r"(\w+)\s*=", matchers):
                assert label in labels[metric], f"{name}: {metric} has no label {label}"
        for label in (label.strip() for group in GROUPED.findall(expression) for label in group.split(",")):
            assert label in known, f"{name}: nothing has a label {label}"
        checked += len(selected)
    assert checked > 50


def test_the_dashboard_is_whole() -> None:
    """Each panel has an id of its own, a place that no other has, and the source that a viewer chooses."""
    panels = DASHBOARD["panels"]
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24
    sources = {target["datasource"]["uid"] for panel in panels for target in panel.get("targets", [])}
    assert sources == {"${source}"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["source"]


ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]


def test_each_alert_is_explained(client: Client) -> None:
    """Its address leads to a section of the page of service levels, and no section is about an alert that is gone."""
    page = client.get("/docs/service-levels/").content.decode()

    for rule in ALERTS:
        address, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert address == "https://limits.example/docs/service-levels/"
        assert anchor == rule["alert"].lower()
        assert f'id="{anchor}"' in page
        assert f">{rule['labels']['severity']}<" in page.partition(f'href="#{anchor}"')[2].partition("</tr>")[0]
    assert set(re.findall(r'id="(sluicegate\w+)"', page)) == {rule["alert"].lower() for rule in ALERTS}


def test_each_alert_fires_in_a_test() -> None:
    """And is silent before, in the series that promtool is given."""
    cases = [case for test in RULES_TEST["tests"] for case in test.get("alert_rule_test", [])]
    found = {(case["alertname"], bool(case["exp_alerts"])) for case in cases}

    assert found == {(rule["alert"], fires) for rule in ALERTS for fires in (True, False)}
