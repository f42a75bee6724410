from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Page
from pytest_django.live_server_helper import LiveServer

from enforcement.embedded import ValkeyServer
from tests.controlplane.adminkit.walking import Walker
from tests.requires import chromium

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


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    """The system's Chromium: the registries carry none."""
    return {"executable_path": chromium(), "args": ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]}


@pytest.fixture
def walker(transactional_db: None, store: ValkeyServer, live_server: LiveServer, page: Page) -> Iterator[Walker]:
    """Somebody at a browser, before a server with a store; at the end nothing may have gone wrong."""
    User.objects.create_superuser("ann", "ann@example.org", PASSWORD)
    walker = Walker(page, live_server.url)
    yield walker
    assert not walker.faults, "\n".join(walker.faults)
