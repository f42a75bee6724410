from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

PASSWORD = "correct horse battery staple"


@pytest.fixture
def ann(db: None) -> User:
    """An operator with every right."""
    return User.objects.create_superuser("ann", "ann@example.org", PASSWORD)


@pytest.fixture
def as_ann(ann: User, client: Client) -> Client:
    """Ann's session, without a browser."""
    client.force_login(ann)
    return client


@pytest.fixture
def told(as_ann: Client) -> Callable[[Any], list[str]]:
    """The messages that a page shows to whoever did something."""

    def messages_of(response: Any) -> list[str]:
        return [str(message) for message in response.context["messages"]]

    return messages_of
