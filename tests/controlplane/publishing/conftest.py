import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from controlplane.publishing.changes import Actor

ANN = Actor("ann", "api", "req-1")


@pytest.fixture
def actor() -> Actor:
    return ANN


@pytest.fixture
def document(client_of_store: redis.Redis) -> Callable[[str], Any]:
    """What an enforcer would read: ``document("policy:<id>")``, None when there is none."""

    def read(name: str) -> Any:
        text = client_of_store.hget("sg:{doc}:documents", name)
        return text and json.loads(text)

    return read


@pytest.fixture
def token_document(client_of_store: redis.Redis) -> Callable[[str], Any]:
    """What an enforcer would read of the token with this digest, None when there is none."""

    def read(digest: str) -> Any:
        text = client_of_store.get(f"sg:{{doc}}:token:{digest}")
        return text and json.loads(text)

    return read
