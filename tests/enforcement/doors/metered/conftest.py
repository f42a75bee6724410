import pytest

from enforcement.doors.asgi import LimitMiddleware
from tests.enforcement.doors.metered.provider import Provider


@pytest.fixture
def provider():
    return Provider()


@pytest.fixture
def door(aio_limiter, provider):
    """Give the provider behind the metered middleware."""
    return LimitMiddleware(provider, aio_limiter, metered=True)
