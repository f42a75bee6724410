from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from controlplane.releases.publishing import publisher


@pytest.fixture
def stopped_publishing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """A block in which nothing is published, as while the store is away."""

    @contextmanager
    def stopped() -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(publisher, "publish_promptly", lambda: None)
            yield

    return stopped
