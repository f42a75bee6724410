"""A store over TLS: who it is must be proven, to it and by it, for decisions, documents and the control plane alike."""

import asyncio

import pytest
from redis.exceptions import ConnectionError as StoreConnectionError

from enforcement import Limit, Limiter, aio
from enforcement.store import connect
from tests.docs.tls import certificate, terminator

LIMIT = Limit(name="rate", quota=5, window_seconds=3_600)


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    """Give three certificates that sign themselves, each with its key: the store's, a client's, and another host's."""
    hosts = {"store": "127.0.0.1", "client": "127.0.0.1", "other": "127.0.0.2"}
    return [certificate(tmp_path_factory.mktemp(name), host) for name, host in hosts.items()]


def decides(url):
    """Tell by whom a request is decided over this URL, asked by both limiters and by the control plane's client."""
    limiter = Limiter(url, timeout=1.0)
    source = limiter.hit(LIMIT, "k").source
    limiter.close()

    async def awaited():
        limiter = aio.Limiter(url, timeout=1.0)
        decision = await limiter.hit(LIMIT, "k")
        await limiter.close()
        return decision.source

    try:
        with connect(url) as client:
            answers = client.ping()
    except StoreConnectionError:
        answers = False
    return {source, asyncio.run(awaited()), "store" if answers else "fallback"}


def test_a_certificate_is_verified(world, server, papers):
    """With its authority's file the store is trusted; without, with another's, or under another name it is not."""
    (own, key), _, (other, _) = papers
    with terminator(server.port, own, key) as port:
        assert decides(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={own}") == {"store"}
        assert decides(f"rediss://127.0.0.1:{port}/0") == {"fallback"}
        assert decides(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={other}") == {"fallback"}


def test_the_name_of_the_host_is_checked(world, server, papers):
    """A good certificate of another host is refused, unless the URL says that names do not matter."""
    _, _, (other, key) = papers
    with terminator(server.port, other, key) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={other}"
        assert decides(url) == {"fallback"}
        assert decides(f"{url}&ssl_check_hostname=false") == {"store"}


def test_a_store_that_asks_for_a_certificate_gets_one(world, server, papers):
    """Clients without one, or with a stranger's, are turned away."""
    (own, key), (client, client_key), (other, other_key) = papers
    with terminator(server.port, own, key, clients=client) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={own}"
        assert decides(f"{url}&ssl_certfile={client}&ssl_keyfile={client_key}") == {"store"}
        assert decides(url) == {"fallback"}
        assert decides(f"{url}&ssl_certfile={other}&ssl_keyfile={other_key}") == {"fallback"}
