"""URLs of stores: what is read from them, and what is said of those that cannot be used."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from enforcement import Limit, Limiter, aio
from enforcement.store.client import connect
from enforcement.store.topology import Topology

LIMIT = Limit(name="rate", quota=5, window_seconds=3_600)


def test_sentinels_and_their_service_are_read():
    """Hosts with and without a port, IPv6, a database, and an account that is the servers' alone."""
    url = "redis+sentinel://app:p%40ss@s1:26380,s2,[::1]:7/orders/3?sentinel_password=q%2F%3A{}&socket_keepalive=1"

    topology = Topology.parse(url)

    assert (topology.kind, topology.service) == ("sentinel", "orders")
    assert topology.hosts == (("s1", 26380), ("s2", 26379), ("::1", 7))
    server, sentinel = topology.address_of("s9", 1), topology.sentinel_address("s1", 26380)
    assert (server.username, server.password, server.database) == ("app", "p@ss", 3)
    assert (sentinel.host, sentinel.username, sentinel.password, sentinel.database) == ("s1", "", "q/:{}", 0)


def test_nodes_of_a_cluster_are_read():
    """The default port, TLS for every node, and options for every connection."""
    topology = Topology.parse("rediss+cluster://:secret@n1,n2:7001?ssl_cert_reqs=none")

    assert (topology.kind, topology.hosts) == ("cluster", (("n1", 6379), ("n2", 7001)))
    assert topology.url_of("::1", 5) == "rediss://:secret@[::1]:5/0?ssl_cert_reqs=none"
    assert topology.address_of("n3", 1).tls is not None
    assert topology.address_of("n3", 1).password == "secret"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://a", "must begin with redis://"),
        (None, "must begin with redis://"),
        (b"redis://a", "must begin with redis://"),
        ("redis://a:port/0", "the port must be an integer"),
        ("redis://a:99999/0", "the port must be an integer"),
        ("redis://:se/cret@a", "in a password as %40"),
        ("redis://a/zero", "only the number of a database"),
        ("redis://a/0/1", "only the number of a database"),
        ("redis://a/0?tiemout=5", "unexpected keyword argument 'tiemout'"),
        ("redis://a/0?socket_timeout=soon", "socket_timeout"),
        ("rediss://a/0?ssl_cert_reqs=perhaps", "perhaps"),
        ("redis+cluster://a?tiemout=5", "unexpected keyword argument 'tiemout'"),
        ("redis+sentinel://a:1", "name of the service must follow"),
        ("redis+sentinel://a/store/x", "only the number of a database"),
        ("redis+sentinel://a/store/1/2", "only the number of a database"),
        ("redis+sentinel://a/store?db=1", "the database belongs in the path"),
        ("redis+sentinel://a/store?sentinel_username=u", "needs sentinel_password"),
        ("redis+sentinel://a:x,b/store", "the port of host 1, 'a:x'"),
        ("redis+sentinel://a,b:70000/store", "the port of host 2, 'b:70000'"),
        ("redis+cluster://:pass@", "host 1 of ''"),
        ("redis+cluster://a,,b", "host 2 of 'a,,b'"),
        ("redis+cluster://a,a:6379", "names a host twice"),
        ("redis+cluster://a/1", "a cluster has no databases"),
        ("redis://a..b/0", "'a..b' is not a host"),
        (f"redis+cluster://a,{'x' * 64}", "between dots"),
        ("redis+cluster://a?sentinel_password=x", "for redis+sentinel:// only"),
        ("redis+cluster://u:se/cret@a", "in a password as %40"),
        ("redis+cluster://u:se?cret@a", "in a password as %40"),
    ],
)
def test_what_is_wrong_is_named_everywhere_and_no_password_is(url, text):
    """The limiter and the control plane's client refuse the same, before any connection."""
    for open_store in (Topology.parse, Limiter, connect):
        with pytest.raises(ValueError, match=r"^url: ") as refused:
            open_store(url)
        assert text in str(refused.value)
        assert "pass@" not in str(refused.value)
        assert "u:se" not in str(refused.value)
        assert "'se'" not in f"{refused.value} {refused.value.__cause__}"


@pytest.mark.parametrize(
    "url",
    [
        "redis://a",
        "redis://a/",
        "redis://a:7001/3?socket_keepalive=1&client_name=shop&max_connections=5&health_check_interval=3",
        "rediss://:p%2Fw@a/0?ssl_cert_reqs=none",
        "unix:///run/store.sock?db=3",
    ],
)
def test_what_redis_py_reads_is_read(url):
    """Databases, options of its pools and of its connections."""
    assert Topology.parse(url).address.database == (3 if "3" in url.partition("?")[0] or "db=3" in url else 0)


@pytest.fixture
def silence():
    """Give the port of something that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("url", ["redis+cluster://127.0.0.1:{}", "redis+sentinel://127.0.0.1:{}/store"])
def test_hosts_that_say_nothing_are_a_store_that_is_away(silence, url):
    """Both limiters decide without waiting for them longer than their budget, each in its own threads and tasks."""
    limiter, awaited = Limiter(url.format(silence), timeout=0.05), aio.Limiter(url.format(silence), timeout=0.05)

    def took(ask):
        began = time.monotonic()
        return ask().source, time.monotonic() - began < 0.6

    async def hit():
        decisions = await asyncio.gather(*(awaited.hit(LIMIT, f"k{i}") for i in range(20)))
        await awaited.close()
        return decisions

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda i: took(lambda: limiter.hit(LIMIT, f"k{i}")), range(20))) == {("fallback", True)}
    began = time.monotonic()
    assert {decision.source for decision in asyncio.run(hit())} == {"fallback"}
    assert time.monotonic() - began < 5.0  # most of it for the agent to end
    limiter.close()


def test_nothing_is_connected_before_the_first_call():
    """A limiter and a client are made for hosts that do not exist."""
    for url in ("redis+cluster://nowhere.invalid", "redis+sentinel://nowhere.invalid/store"):
        Limiter(url).close()
        connect(url).close()
