from collections.abc import Iterator

import pytest

from controlplane.projects.models import Project
from controlplane.publishing import verbs
from controlplane.publishing.changes import Actor, change
from enforcement import Limiter
from enforcement.embedded import ValkeyServer
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory


@pytest.fixture
def full(transactional_db: None, store: ValkeyServer) -> Iterator[Project]:
    """A project of which 12 users asked where 5 may have counters; the enforcer still runs."""
    limit = LimitFactory(policy=PolicyFactory(slug="full"), name="user", quota=1_000, partition_by=["user"])
    project = ProjectFactory(slug="full", policy=limit.policy, partition_cap=5)
    with change(actor=Actor("ann", "command")) as tx:
        tx.created(limit.policy)
        tx.created(project)
        _, secret = verbs.issue_token(tx, project=project, name="ci")
    with Limiter(store.url, timeout=1.0) as limiter:
        for number in range(12):
            assert limiter.check(secret, attributes={"user": f"u{number}"}).allowed
        yield project
