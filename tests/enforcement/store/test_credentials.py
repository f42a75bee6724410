"""A store that is named by a redis-py client, and credentials that a function returns."""

import asyncio
import re
from contextlib import closing
from ssl import CERT_OPTIONAL, CERT_REQUIRED

import pytest
import redis
from redis.credentials import UsernamePasswordCredentialProvider

from enforcement import Limit, Limiter, StoreError, aio
from enforcement.store.credentials import from_client
from enforcement.store.topology import Topology
from tests.enforcement.world import eventually, fixed

HOUR = Limit.parse("9/hour")


@pytest.fixture
def account(world):
    """Give the server an account whose password can change; return how to set it."""

    def password(text):
        world.client.execute_command("ACL SETUSER", "app", "on", "resetpass", f">{text}", "~*", "&*", "+@all")

    password("p@ss /1")
    yield password
    world.client.execute_command("ACL DELUSER", "app")


def address(server, **more):
    return {"host": "127.0.0.1", "port": server.port, **more}


@pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis])
def test_a_client_stands_for_its_address(server, account, kind):
    """Both limiters take it, as they take its pool; its password needs no quoting."""
    client = kind(**address(server, username="app", password="p@ss /1"))

    async def awaited():
        other = aio.Limiter(client, timeout=1.0)
        assert (await other.hit(HOUR, "u")).source == "store"
        await other.close()

    with closing(Limiter(client.connection_pool, timeout=1.0)) as limiter:
        assert limiter.hit(HOUR, "u").source == "store"
        asyncio.run(awaited())
        assert limiter.peek(HOUR, "u").remaining == 7


def test_credentials_are_asked_for_with_each_new_connection(server, account, world):
    """A password that expires is renewed without a restart, on the roads of decisions and of the background."""
    present = ["p@ss /1"]
    token = world.everything(fixed(9))
    with Limiter(f"redis://127.0.0.1:{server.port}", timeout=1.0, credentials=lambda: ("app", present[0])) as limiter:
        assert limiter.check(token).source == "store"
        account("second")
        present[0] = "second"
        world.client.client_kill_filter(_type="normal", skipme=True)
        assert eventually(lambda: limiter.check(token).source == "store")
        limiter.ping()
        assert eventually(lambda: limiter.state == "ok")


def test_the_provider_of_a_client_is_asked(server, account):
    """As it gives tokens of a cloud."""
    provider = UsernamePasswordCredentialProvider("app", "p@ss /1")
    with closing(Limiter(redis.Redis(**address(server, credential_provider=provider)), timeout=1.0)) as limiter:
        limiter.ping()
        assert limiter.hit(HOUR, "u").source == "store"


@pytest.mark.parametrize("credentials", [lambda: ("app", "wrong"), lambda: 1 / 0, lambda: "app"])
def test_credentials_that_are_of_no_use_are_a_store_that_is_away(server, account, credentials):
    """A decision still comes, and ping says why."""
    with closing(Limiter(f"redis://127.0.0.1:{server.port}", timeout=1.0, credentials=credentials)) as limiter:
        with pytest.raises(StoreError, match=r"auth|credentials"):
            limiter.ping()
        assert limiter.hit(HOUR, "u").source == "fallback"


@pytest.mark.parametrize(
    ("client", "url"),
    [
        (redis.Redis(), "redis://localhost:6379/0"),
        (redis.Redis(host="::1", port=7, db=3), "redis://[::1]:7/3"),
        (redis.Redis(password="a:b/c@d"), "redis://:a%3Ab%2Fc%40d@localhost:6379/0"),
        (redis.Redis(unix_socket_path="/run/a b.sock", db=2), "unix:///run/a%20b.sock?db=2"),
        (redis.Redis(host="h", ssl=True), "rediss://h:6379/0"),
        (redis.Redis(host="h", ssl=True, ssl_cert_reqs=CERT_REQUIRED), "rediss://h:6379/0"),
        (redis.Redis(host="h", ssl=True, ssl_cert_reqs=CERT_OPTIONAL), "rediss://h:6379/0?ssl_cert_reqs=optional"),
        (
            redis.Redis(host="h", ssl=True, ssl_cert_reqs="none", ssl_check_hostname=False),
            "rediss://h:6379/0?ssl_cert_reqs=none&ssl_check_hostname=False",
        ),
        (redis.from_url("redis://u:p@h:1/2"), "redis://u:p@h:1/2"),
    ],
)
def test_the_url_of_a_client(client, url):
    """It can be read back, with the same account and TLS."""
    assert from_client(client) == (url, None)
    assert Topology.parse(url).address.database == int(client.connection_pool.connection_kwargs.get("db") or 0)


@pytest.mark.parametrize(
    ("url", "keywords", "message"),
    [
        (7, {}, "url: must begin with redis://, or be a redis-py client or pool of one server, got int"),
        (None, {}, "url: must begin with redis://"),
        (
            redis.sentinel.Sentinel([("127.0.0.1", 1)]).master_for("m"),
            {},
            "url: must begin with redis://, or be a redis-py client or pool of one server, got Redis. Name sentinels",
        ),
        (redis.Redis(ssl=True, ssl_min_version=771), {}, "url: the client's ssl_min_version cannot be kept"),
        ("redis://u:p@h", {"credentials": lambda: ("u", "p")}, "credentials: must be None if the URL names a user"),
        ("redis://h", {"credentials": ("u", "p")}, "credentials: must be a function"),
    ],
)
def test_what_cannot_be_kept_is_an_error(url, keywords, message):
    """Nothing is dropped silently, least of all a rule of TLS."""
    for kind in (Limiter, aio.Limiter):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            kind(url, **keywords)
