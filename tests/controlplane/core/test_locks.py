import pytest
import redis

from controlplane.core.locks import hold


@pytest.fixture
def client(store) -> redis.Redis:
    with redis.Redis.from_url(store.url, socket_timeout=1, retry=None) as client:
        yield client


def test_one_holds_a_lock(client):
    """A second holder is told that there is a first."""
    with hold(client, "x", ttl_ms=5000) as first, hold(client, "x", ttl_ms=5000) as second:
        assert (first, second) == (1, None)


def test_a_lock_is_free_after_its_block(client):
    """Whoever comes next need not wait for the time to live."""
    with hold(client, "x", ttl_ms=60_000):
        pass

    with hold(client, "x", ttl_ms=60_000) as second:
        assert second == 2


def test_a_later_holder_has_a_higher_token(client):
    """The fencing token tells which of two holders is the later one."""
    tokens = []
    for _ in range(3):
        with hold(client, "x", ttl_ms=5000) as token:
            tokens.append(token)

    assert tokens == [1, 2, 3]


def test_a_lock_ends_by_itself(client):
    """A holder that was killed does not hold it for ever."""
    with hold(client, "x", ttl_ms=5000):
        assert 0 < client.pttl("sg:{lock}:x") <= 5000


def test_a_lock_that_ran_out_is_not_taken_from_the_next(client):
    """Releasing late does not release another's lock."""
    with hold(client, "x", ttl_ms=60_000):
        client.set("sg:{lock}:x", "another")

    assert client.get("sg:{lock}:x") == b"another"


def test_a_lock_is_released_when_its_block_fails(client):
    """An error does not lock everybody out."""
    with pytest.raises(ZeroDivisionError), hold(client, "x", ttl_ms=60_000):
        1 / 0  # noqa: B018

    assert not client.exists("sg:{lock}:x")


def test_a_store_that_dies_meanwhile_does_not_fail_the_block(client, store):
    """What the block did stands; the lock ends by itself."""
    with hold(client, "x", ttl_ms=5000) as token:
        store.kill()

    assert token == 1
