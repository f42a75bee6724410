from copy import deepcopy

import pytest
from django.db.models import Model

from tests.controlplane.objects.people.world import Tenant, installation, tenant

World = tuple[dict[str, Model], dict[str, Tenant]]


@pytest.fixture(scope="module")
def world(kept_rows: None) -> World:
    """The rows that belong to no project, and both projects."""
    return installation(), {name: tenant(name) for name in ("bravo", "alpha")}


@pytest.fixture
def shared(db: None, world: World) -> dict[str, Model]:
    return deepcopy(world[0])


@pytest.fixture
def tenants(db: None, world: World) -> dict[str, Tenant]:
    return deepcopy(world[1])


@pytest.fixture
def bravo(tenants: dict[str, Tenant]) -> Tenant:
    return tenants["bravo"]


@pytest.fixture
def alpha(tenants: dict[str, Tenant]) -> Tenant:
    return tenants["alpha"]
