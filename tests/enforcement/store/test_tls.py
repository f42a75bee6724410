"""A store over TLS: who it is must be proven, to it and by it, for decisions, documents and the control plane alike."""

import asyncio
import subprocess
from contextlib import ExitStack
from ssl import CERT_NONE

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as StoreConnectionError

from enforcement import Limit, Limiter, aio
from enforcement.embedded import find_binary, free_port
from enforcement.store.client import connect
from tests.docs.tls import certificate, terminator
from tests.enforcement.topologies import execute
from tests.enforcement.world import World, eventually

pytestmark = pytest.mark.usefixtures("no_documents")

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


@pytest.mark.parametrize("verification", [CERT_NONE, None, "none"])
def test_a_client_that_verifies_nothing_is_followed(world, server, papers, verification):
    """However redis-py was told so."""
    (own, key), _, _ = papers
    with terminator(server.port, own, key) as port:
        client = Redis(host="127.0.0.1", port=port, ssl=True, ssl_cert_reqs=verification)
        with Limiter(client, timeout=1.0) as limiter:
            assert limiter.hit(LIMIT, "k").source == "store"


def test_a_store_that_asks_for_a_certificate_gets_one(world, server, papers):
    """Clients without one, or with a stranger's, are turned away."""
    (own, key), (client, client_key), (other, other_key) = papers
    with terminator(server.port, own, key, clients=client) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={own}"
        assert decides(f"{url}&ssl_certfile={client}&ssl_keyfile={client_key}") == {"store"}
        assert decides(url) == {"fallback"}
        assert decides(f"{url}&ssl_certfile={other}&ssl_keyfile={other_key}") == {"fallback"}


def test_every_node_of_a_cluster_is_spoken_to_over_tls(papers, cluster):
    """Each says that it is found where TLS stands before it; a certificate that is not trusted opens none of them."""
    (own, key), _, _ = papers
    with ExitStack() as stack:
        World(cluster.url).client.close()
        ports = [stack.enter_context(terminator(server.port, own, key)) for server in cluster.primaries]
        for server, port in zip(cluster.primaries, ports, strict=True):
            execute(server, "CONFIG", "SET", "cluster-announce-port", port)
        first = cluster.primaries[0]
        assert eventually(lambda: {row[2][1] for row in execute(first, "CLUSTER", "SLOTS")} == set(ports), 10)
        url = f"rediss+cluster://127.0.0.1:{ports[0]}"
        known = Limiter(f"{url}?ssl_ca_certs={own}", timeout=1.0)

        assert {known.hit(LIMIT, f"user:{number}").source for number in range(30)} == {"store"}
        assert {node.host_port[1] for node in known._engine.health.connector.slot_map.nodes.values()} == set(ports)
        assert decides(f"{url}?ssl_ca_certs={own}") == {"store"}
        assert decides(url) == {"fallback"}
        known.close()


def test_sentinels_and_the_primary_are_spoken_to_over_tls(world, server, papers, tmp_path):
    """One option of the URL trusts both, and without it neither is asked."""
    (own, key), _, _ = papers
    port, config = free_port(), tmp_path / "sentinel.conf"
    with terminator(server.port, own, key) as primary:
        lines = [f"port {port}", "bind 127.0.0.1", f'dir "{tmp_path}"', f"sentinel monitor store 127.0.0.1 {primary} 1"]
        config.write_text("\n".join(lines) + "\n")
        with subprocess.Popen([find_binary(), config, "--sentinel"], stdout=subprocess.DEVNULL) as process:
            try:
                with terminator(port, own, key) as sentinel:
                    url = f"rediss+sentinel://127.0.0.1:{sentinel}/store"
                    assert eventually(lambda: decides(f"{url}?ssl_ca_certs={own}") == {"store"}, 10)
                    assert decides(url) == {"fallback"}
            finally:
                process.kill()
