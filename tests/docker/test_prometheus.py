"""A real Prometheus asks a running installation, and the dashboard shows something in each chart."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from enforcement import Limiter
from enforcement.embedded import ValkeyServer, free_port
from tests import postgres
from tests.controlplane.stack.parts import Load, Parts
from tests.controlplane.stack.running import eventually
from tests.docker.test_monitoring import DASHBOARD, FOLDER, RULES
from tests.repository import ROOT
from tests.requires import require
from tests.scale import scale

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(not scale(False, True), reason="starts a whole installation and Prometheus: make proof"),
]

START = """
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.prices.models import ModelPrice
from controlplane.objects.projects.actions import issue_token
from controlplane.objects.projects.models import Project
from controlplane.changes.change.transaction import Actor, change
with change(actor=Actor("ann", "command")) as tx:
    policy = Policy.objects.create(slug="free", name="Free")
    Limit.objects.create(policy=policy, name="hour", algorithm="fixed_window", quota=20, window_seconds=3600)
    shadow = {"mode": "shadow", "algorithm": "fixed_window", "quota": 5, "window_seconds": 7200}
    Limit.objects.create(policy=policy, name="shadow", **shadow)
    tx.created(policy)
    project = Project.objects.create(slug="chat", name="Chat", policy=policy)
    tx.created(project)
    secret = issue_token(tx, project=project, name="load")[1]
    ModelPrice.objects.create(pattern="model", input=1, output=2)
print(secret)
"""

CHANGE = """
from controlplane.objects.projects.actions import issue_token
from controlplane.objects.projects.models import Project
from controlplane.changes.change.transaction import Actor, change
with change(actor=Actor("ann", "command")) as tx:
    issue_token(tx, project=Project.objects.get(), name="later")
"""


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus with our rules, which asks a web process and a proxy under load every second."""
    binary = require(shutil.which("prometheus"), "prometheus is missing: install it with 'apt-get install prometheus'.")
    with (
        postgres.running() as database,
        ValkeyServer(persistent=False) as store,
        Parts(tmp_path, database, store.url) as parts,
    ):
        parts.manage(ROOT, "migrate", "--no-input", "-v", "0")
        secret = parts.manage(ROOT, "shell", "-v", "0", "-c", START).split()[-1]
        parts.worker("worker", ROOT)
        own = free_port()
        web, metrics = parts.web("web", ROOT), f"http://127.0.0.1:{own}"
        proxy = parts.proxy("proxy", ROOT, parts.upstream(), SLUICEGATE_METRICS_PORT=str(own))
        with Limiter(store.url, timeout=2.0) as limiter:
            assert limiter.reserve(secret, life=1).id  # ends as lost, because nobody settles it
        # A revision that an instance can acknowledge. The first one had none.
        parts.manage(ROOT, "shell", "-v", "0", "-c", CHANGE)
        load = Load(secret, proxy)
        store.freeze()  # so that calls fail
        assert eventually(lambda: failures(metrics) > 0)
        store.thaw()
        port = free_port()
        shutil.copy(FOLDER / "rules.yaml", tmp_path)
        (tmp_path / "prometheus.yaml").write_text(configuration({"enforcers": metrics, "control-plane": web}))
        options = [f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/tsdb"]
        with (tmp_path / "log" / "prometheus").open("wb") as log:
            asked = subprocess.Popen(
                [binary, *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
            )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            load.stop()
            asked.terminate()
            asked.wait(30)


def failures(metrics: str) -> float:
    with urllib.request.urlopen(f"{metrics}/metrics", timeout=10) as reply:
        return sum(float(one) for one in re.findall(r"sluicegate_store_failures_total{.*} (.*)", reply.read().decode()))


def configuration(targets: dict[str, str]) -> str:
    """Return the example of a configuration, with these targets and shorter intervals."""
    found = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    found["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in found["scrape_configs"]:
        url = targets[job["job_name"].removeprefix("sluicegate-")]
        job["static_configs"] = [{"targets": [urllib.parse.urlsplit(url).netloc]}]
    return str(yaml.safe_dump(found))


def query(prometheus: str, expression: str) -> list[Any]:
    try:
        with urllib.request.urlopen(
            f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        ) as reply:
            return list(json.load(reply)["data"]["result"])
    except OSError:
        return []


def test_each_chart_shows_something(prometheus: str) -> None:
    """Of an installation with traffic, failures, a shadow limit, a price and a lost reservation."""
    targets = {target["expr"]: panel["title"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])}
    recorded = {rule["record"]: "rules" for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
    empty = dict(targets | recorded)

    def all_found() -> bool:
        for expression in list(empty):
            found = query(prometheus, expression)
            if found and all(one["value"][1] != "NaN" for one in found):
                del empty[expression]
        return not empty

    eventually(all_found)
    assert empty == {}
