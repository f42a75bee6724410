import pytest
from django.contrib.auth.models import User
from django.test import Client

from tests.factories import UserFactory


@pytest.fixture
def ann(db: None) -> User:
    """An operator."""
    return UserFactory(username="ann", operator=True)


@pytest.fixture
def as_ann(ann: User, client: Client) -> Client:
    client.force_login(ann)
    return client
