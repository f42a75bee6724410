"""Rows that an earlier version has written, and the way back to it."""

from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from controlplane.alerts.models import AlertRule
from controlplane.alerts.usual import add_usual
from controlplane.fleet.models import FieldCount
from controlplane.policies.models import Override
from controlplane.prices.models import BrokenBound, LearnedEstimate, ModelAddend, ModelPrice
from controlplane.usage.models import EstimateSample, MeteredRow
from tests.factories import LearnedEstimateFactory, LimitFactory, OverrideFactory, ProjectFactory
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)

EARLIER = [("policies", "0013_managed_overrides"), ("prices", "0003_calls")]
BEFORE_BOUNDS = [
    *(("prices", "0005_bounds"), ("usage", "0013_activity")),
    *(("fleet", "0007_glass"), ("alerts", "0002_words")),
]


def migrate(targets: list[Any]) -> Any:
    """Migrate, and return the models of that time."""
    executor = MigrationExecutor(connection)
    executor.migrate(targets or executor.loader.graph.leaf_nodes())
    return MigrationExecutor(connection).loader.project_state(targets or executor.loader.graph.leaf_nodes()).apps


@pytest.fixture
def latest():
    """Other tests find the tables of the last migration again."""
    yield
    migrate([])


@pytest.mark.proof
@pytest.mark.skipif(not scale(False, True), reason="migrating twice takes some seconds: make proof")
def test_prices_and_overrides_go_forth_and_back(latest):
    """An override for one value ends on the way back, as it would count for all values. The others stay as they are."""
    project = ProjectFactory(slug="chat")
    limit = LimitFactory(partition_by=["label.team"])
    given = {"limit": limit, "token": None, "project": project}
    OverrideFactory(**given, quota=5)
    for team, quota in (("web", 6), ("data", 7)):
        OverrideFactory(**given, partition=f"label.team = {team}", quota=quota)
    ModelPrice.objects.create(pattern="m", input=1, output=2, classes={"output_image": 3}, bounds={"file": 4})

    old = migrate(EARLIER)
    overrides = old.get_model("policies", "Override")._base_manager
    assert sorted(overrides.filter(ended_at=None).values_list("quota", flat=True)) == [5]
    old.get_model("prices", "ModelPrice").objects.create(
        id="prc_old", pattern="old", input=1, output=2, tiers=[{"above_input": 9, "input": 3, "output": 4}]
    )

    migrate([])
    assert [(one.quota, one.ended_at is None, one.partition) for one in Override.with_ended.order_by("quota")] == [
        (5, True, ""),
        (6, False, ""),
        (7, False, ""),
    ]
    found = ModelPrice.objects.get(pattern="old")
    assert (found.classes, found.multipliers, found.bounds, found.tiers) == (
        {},
        {},
        {},
        [{"above_input": 9, "input": 3, "output": 4}],
    )
    found.full_clean()


@pytest.mark.proof
@pytest.mark.skipif(not scale(False, True), reason="migrating twice takes some seconds: make proof")
def test_what_is_learned_and_counted_of_bounds_goes_forth_and_back(latest):
    """Usage and prices stay. What only this version knows ends on the way back, and is learned and counted anew."""
    now, metered = timezone.now(), {"period": "day", "project_id": "proj_1", "token_id": "tok_1", "model": "m"}
    usage = MeteredRow.objects.create(at=now, settled_as="exact", requests=3, input=40, micros=5, **metered)
    price = ModelPrice.objects.create(pattern="m", input=1, output=2, bounds={"added_tokens": 7})
    ModelAddend.objects.create(pattern="m", tokens=9, reported=9, raised_at=now)
    BrokenBound.objects.create(project_id="proj_1", model="m", format="gemini", requests=2, added=9, last_at=now)
    EstimateSample.objects.create(day=now, project_id="proj_1", model="m", interface="gemini", requests=3)
    FieldCount.objects.create(process="proxy 1", day=20_000, counts={"refused": [["turbo", 1]]})
    LearnedEstimateFactory()
    add_usual()
    kinds = sorted(AlertRule.objects.values_list("kind", flat=True))

    old = migrate(BEFORE_BOUNDS)
    rows = old.get_model("usage", "MeteredRow")._base_manager
    assert rows.values_list("requests", "text_bytes").get() == (3, 0)
    rows.update(text_requests=1, text_bytes=2, text_input=3)
    old.get_model("prices", "ModelFactor")._base_manager.create(
        id="fct_old", model="m", per_mille=900, requests=9, projects=1, days=3
    )

    migrate([])
    assert MeteredRow.objects.values_list("requests", "input", "micros").get(pk=usage.pk) == (3, 40, 5)
    assert ModelPrice.objects.get().as_record() == price.as_record()
    for model in (ModelAddend, BrokenBound, EstimateSample, FieldCount, LearnedEstimate):
        assert not model.objects.exists()
    assert sorted(AlertRule.objects.values_list("kind", flat=True)) == kinds
