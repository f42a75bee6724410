"""Rows that an earlier version has written, and the way back to it."""

from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from controlplane.policies.models import Override
from controlplane.prices.models import ModelPrice
from tests.factories import LimitFactory, OverrideFactory, ProjectFactory
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)

EARLIER = [("policies", "0013_managed_overrides"), ("prices", "0003_calls")]


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
