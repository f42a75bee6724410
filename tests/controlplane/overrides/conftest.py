import pytest
from django.contrib.auth.models import User
from django.test import Client

from tests.controlplane.preview.conftest import sent

__all__ = ["as_ann", "sent"]


@pytest.fixture
def as_ann(client: Client, db: None) -> Client:
    """The session of somebody who may do everything, without a browser."""
    client.force_login(User.objects.create_superuser("ann", "ann@example.org"))
    return client
