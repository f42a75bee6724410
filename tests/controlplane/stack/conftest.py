from collections.abc import Iterator

import pytest

from tests import postgres


@pytest.fixture
def database() -> Iterator[str]:
    with postgres.running() as url:
        yield url
