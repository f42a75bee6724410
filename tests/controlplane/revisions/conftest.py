from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from django.contrib.auth.models import User
from django.test import Client

from controlplane.publishing import publisher


@pytest.fixture
def as_ann(client: Client, db: None) -> Client:
    """The session of somebody who may do everything, without a browser."""
    client.force_login(User.objects.create_superuser("ann", "ann@example.org"))
    return client


@pytest.fixture
def stopped_publishing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """A block in which nothing is published, as while the store is away."""

    @contextmanager
    def stopped() -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(publisher, "publish_promptly", lambda: None)
            yield

    return stopped
