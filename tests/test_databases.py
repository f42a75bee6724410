"""The database of a worker, be it migrated or a copy."""

import pytest
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.migrations.executor import MigrationExecutor


@pytest.mark.django_db
def test_all_migrations_have_run() -> None:
    """And what follows them: each app has its content types and permissions."""
    executor = MigrationExecutor(connection)

    assert executor.migration_plan(executor.loader.graph.leaf_nodes()) == []
    assert {row.app_label for row in ContentType.objects.all()} >= {"projects", "policies", "auth"}
    assert Permission.objects.filter(content_type__app_label="projects").exists()
