"""The prices that a process uses: loaded when they are first asked for, followed, and never dropped by mistake."""

import json
import os
import sys
import threading
import time
from contextlib import closing

import pytest
from redis.exceptions import NoPermissionError

from enforcement import Limiter
from enforcement.embedded import ValkeyServer
from enforcement.engine import prices as loader
from enforcement.metering.price_documents import parse_prices
from enforcement.model.documents import InvalidDocument
from enforcement.store.client import connect
from enforcement.store_calls.acl import enforcer
from enforcement.testing import Published
from tests.enforcement.stalls import timed
from tests.enforcement.world import eventually, fixed

PRICE = {"model": "gpt-*", "input": 1_000_000, "output": 4_000_000}


def entry(rate):
    return {**PRICE, "input": rate}


def rate_of(limiter, model="gpt-x"):
    """Return what the limiter charges for a million tokens of input, or None if the model has no price."""
    price = limiter.prices.find(model, time.time_ns() // 1_000)
    return None if price is None else price.rates.input


@pytest.fixture
def limiter(server, world):
    world.everything(fixed(10))
    with Limiter(server.url, timeout=1.0, lookup=1.0) as limiter:
        world.followers.append(limiter)
        yield limiter


def heartbeat(world, limiter):
    return json.loads(world.client.get(world.keys.instance(limiter.stats().instance)))


def test_the_first_call_waits_for_the_prices(world, limiter):
    revision = world.published.prices(PRICE, currency="EUR")
    prices = limiter.find_prices()
    assert (prices.revision, prices.currency) == (revision, "EUR")


def test_an_installation_without_prices_has_none_at_once(limiter):
    prices, took = timed(limiter.find_prices)
    assert prices.revision == 0
    assert took < 0.9


def test_a_new_price_is_used_within_a_second(world, limiter):
    world.published.prices(entry(1))
    limiter.find_prices()
    world.published.publish(prices=({"schema": 1, "revision": world.revision + 1, "prices": [entry(2)]},))
    assert eventually(lambda: rate_of(limiter) == 2, 1.0)


def test_removed_prices_are_no_longer_used(world, limiter):
    world.published.prices(PRICE)
    limiter.find_prices()
    world.published.publish(prices=(None,))
    assert eventually(lambda: rate_of(limiter) is None, 1.0)


def test_a_full_publication_brings_the_prices_too(world, limiter):
    world.published.prices(entry(1))
    limiter.find_prices()
    document = {"schema": 1, "revision": world.revision + 1, "prices": [entry(3)]}
    world.publish({"global": {"schema": 1, "policy": None}}, full=True, replace_all=True, prices=(document,))
    assert eventually(lambda: rate_of(limiter) == 3, 1.0)


def test_who_meters_nothing_reads_no_prices(server, world):
    """Neither at the start nor when prices are published: not one command names their key."""
    secret = world.everything(fixed(10))
    with world.client.monitor() as monitor, Limiter(server.url) as limiter:
        world.followers.append(limiter)
        world.published.prices(PRICE)
        assert limiter.check(secret).allowed
        world.client.echo("the end")
        sent = []
        while "the end" not in (seen := monitor.next_command())["command"]:
            sent += [seen["command"]] if seen["client_type"] != "lua" else []
        heard = heartbeat(world, limiter)
    assert [command for command in sent if world.keys.prices in command and "publish" not in command] == []
    assert "price_revision" not in heard


def test_the_heartbeat_acknowledges_the_prices(world, limiter):
    revision = world.published.prices(PRICE)
    limiter.find_prices()
    assert eventually(lambda: heartbeat(world, limiter).get("price_revision") == revision)
    later = world.published.prices(entry(5))
    assert eventually(lambda: heartbeat(world, limiter)["price_revision"] == later, 2.0)


def test_a_long_document_lets_other_threads_run(world, limiter, monkeypatch):
    """Threads take turns more often while it is parsed, and as before afterwards, also if it is refused."""
    usual, seen = sys.getswitchinterval(), []

    def watched(text):
        seen.append(sys.getswitchinterval())
        return parse_prices(text)

    monkeypatch.setattr(loader, "parse_prices", watched)
    world.published.prices(entry(1))
    limiter.find_prices()
    world.published.prices(*({**entry(2), "model": f"model-{n}"} for n in range(2_000)))
    assert eventually(lambda: len(limiter.prices.prices) == 2_000)
    wrong = {"schema": 1, "revision": world.revision + 1, "prices": [{"model": "x" * 100_000}]}
    world.published.publish(prices=(wrong,))
    assert eventually(lambda: limiter.state == "degraded")
    assert [interval < usual for interval in seen] == [False, True, True]
    assert sys.getswitchinterval() == usual


@pytest.mark.usefixtures("quick_duties")
@pytest.mark.parametrize("wrong", [{"prices": [{**PRICE, "input": -1}]}, {"surprise": 1}])
def test_a_wrong_document_leaves_the_last_good_prices(world, limiter, wrong, caplog):
    """The instance says so in its log, its state and its heartbeat, until the document is repaired."""
    good = world.published.prices(entry(1))
    limiter.find_prices()
    bad = {"schema": 1, "revision": world.revision + 1, **wrong}
    world.published.publish(prices=(bad,))

    assert eventually(lambda: limiter.state == "degraded")
    assert (rate_of(limiter), limiter.prices.revision) == (1, good)
    assert eventually(lambda: heartbeat(world, limiter)["problems"] == ["bad_prices"])
    assert "The prices are refused, the last good ones stay" in caplog.text
    world.published.prices(entry(2))
    assert eventually(lambda: (rate_of(limiter), limiter.state) == (2, "ok"))


def test_a_process_that_only_met_a_wrong_document_has_no_prices(world, server, monkeypatch):
    """Nobody is told that a model has no price, because nobody knows."""
    monkeypatch.setattr(loader, "FIRST_WAIT_SECONDS", 0.3)
    world.published.publish(prices=({"schema": 9, "revision": 1},))
    with Limiter(server.url) as limiter:
        assert limiter.find_prices() is None
        world.published.prices(entry(2))
        assert eventually(lambda: limiter.find_prices() is not None)


def test_an_emptied_store_takes_no_prices_away(world, limiter):
    """Neither while it is empty, nor when another one that lacks them is a revision behind."""
    world.published.prices(entry(1))
    limiter.find_prices()
    world.client.flushall()
    world.client.hset(world.keys.documents, mapping={"revision": 1, "store_id": "another"})
    limiter._documents.price_changes += 1  # whatever lets it look
    time.sleep(0.3)
    assert rate_of(limiter) == 1


@pytest.mark.usefixtures("no_documents")
def test_a_process_that_starts_in_an_outage_uses_its_copy_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "FIRST_WAIT_SECONDS", 0.3)
    with ValkeyServer() as server:
        published = Published(server.url)
        published.publish({"global": {"schema": 1, "policy": None}})
        published.prices(entry(7))
        with Limiter(server.url, state_dir=tmp_path) as limiter:
            assert limiter.find_prices() is not None
        url = server.url
        published.close()
        server.kill()
    with Limiter(url, state_dir=tmp_path) as limiter:
        assert limiter.find_prices() is not None
        assert rate_of(limiter) == 7
    with Limiter(url) as stranger:
        assert stranger.find_prices() is None


@pytest.mark.usefixtures("no_documents")
def test_a_copy_on_disk_that_was_altered_is_ignored(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(loader, "FIRST_WAIT_SECONDS", 0.3)
    with Limiter("redis://127.0.0.1:1/0", state_dir=tmp_path) as limiter:
        path = limiter._engine.agent._path
        path.with_name(path.name.replace("documents", "prices")).write_bytes(b"sluicegate-prices 1\n{}\nsha256 00\n")
        assert limiter.find_prices() is None
    assert "Ignored the saved prices" in caplog.text


def test_a_forked_child_has_the_prices_and_follows_them(world, limiter):
    world.published.prices(entry(1))
    limiter.find_prices()
    child = os.fork()
    if not child:
        ok = rate_of(limiter) == 1 and eventually(lambda: rate_of(limiter) == 2)
        os._exit(0 if ok else 1)
    time.sleep(0.2)
    world.published.prices(entry(2))
    assert os.waitpid(child, 0)[1] == 0


def test_a_child_that_is_forked_while_prices_are_read_uses_them(world, limiter, monkeypatch):
    """Its parent's thread would have used them a moment later. The child has no such thread."""
    world.published.prices(entry(1))
    limiter.find_prices()
    parsing, goes_on, parent = threading.Event(), threading.Event(), os.getpid()

    def slowly(text):
        if os.getpid() == parent:
            parsing.set()
            assert goes_on.wait(10.0)
        return parse_prices(text)

    monkeypatch.setattr(loader, "parse_prices", slowly)
    world.followers.clear()  # this one would be waited for
    world.published.prices(entry(2))
    assert parsing.wait(10.0)
    child = os.fork()
    if not child:
        os._exit(0 if rate_of(limiter) == 1 and eventually(lambda: rate_of(limiter) == 2) else 1)
    goes_on.set()
    assert os.waitpid(child, 0)[1] == 0


def test_a_child_that_is_forked_while_a_long_document_is_read_takes_turns_as_usual(world, limiter, monkeypatch):
    """Nobody in the child would set the interval back. It is shortened again for the next long document."""
    world.published.prices(entry(1))
    limiter.find_prices()
    parsing, goes_on, parent = threading.Event(), threading.Event(), os.getpid()
    usual, seen = sys.getswitchinterval(), []

    def watched(text):
        seen.append(sys.getswitchinterval())
        if os.getpid() == parent:
            parsing.set()
            assert goes_on.wait(10.0)
        return parse_prices(text)

    monkeypatch.setattr(loader, "parse_prices", watched)
    world.followers.clear()  # this one would be waited for
    world.published.prices(*({**entry(2), "model": f"model-{n}"} for n in range(2_000)))
    assert parsing.wait(10.0)
    child = os.fork()
    if not child:
        loaded = eventually(lambda: len(limiter.prices.prices) == 2_000)
        # It is set back after the prices can be seen.
        reset = eventually(lambda: sys.getswitchinterval() == usual)
        os._exit(0 if loaded and reset and seen[1:] == [seen[0]] and seen[0] < usual else 1)
    goes_on.set()
    assert os.waitpid(child, 0)[1] == 0


def test_a_child_that_is_forked_while_the_copy_is_read_reads_it_too(tmp_path, monkeypatch):
    with ValkeyServer() as server, closing(Published(server.url)) as published:
        published.publish({"global": {"schema": 1, "policy": None}})
        published.prices(entry(7))
        with Limiter(server.url, state_dir=tmp_path) as limiter:
            limiter.find_prices()
        url = server.url
    children, parent = [], os.getpid()

    def forking(text):
        if os.getpid() == parent and not children:
            children.append(os.fork())
            if not children[0]:
                os._exit(0 if after_fork.find_prices() and rate_of(after_fork) == 7 else 1)
        return parse_prices(text)

    monkeypatch.setattr(loader, "parse_prices", forking)
    with Limiter(url, state_dir=tmp_path) as after_fork:
        assert after_fork.find_prices() is not None
    assert os.waitpid(children[0], 0)[1] == 0


def test_a_limiter_that_was_closed_follows_again(world, limiter):
    world.published.prices(entry(1))
    limiter.find_prices()
    limiter.close()
    world.followers.clear()
    world.published.prices(entry(2))
    limiter.start()
    assert eventually(lambda: rate_of(limiter) == 2)


def test_an_account_without_the_right_gets_no_prices_and_says_so(server, world, caplog):
    """As an account that an earlier release has made. Everything else goes on, and the right suffices to read them."""
    secret = world.everything(fixed(10))
    world.published.prices(PRICE)
    earlier = [rule.replace(f" %R~{world.keys.prices}", "") for rule in enforcer(world.keys)]
    assert earlier != enforcer(world.keys)
    world.client.acl_setuser("old", enabled=True, reset=True)
    world.client.execute_command("ACL", "SETUSER", "old", "on", ">secret", *earlier)
    with Limiter(server.url.replace("redis://", "redis://old:secret@")) as limiter:
        assert limiter.find_prices() is None
        assert limiter.check(secret).allowed
        assert "The store refused the prices" in caplog.text

        world.client.execute_command("ACL", "SETUSER", "old", *enforcer(world.keys))
        assert eventually(lambda: rate_of(limiter) == PRICE["input"])
    with pytest.raises(NoPermissionError):
        connect(server.url.replace("redis://", "redis://old:secret@")).set(world.keys.prices, "{}")
    world.client.acl_deluser("old")


def test_the_test_kit_refuses_a_wrong_price(world):
    with pytest.raises(InvalidDocument, match=r"prices\[0\].output: is required"):
        world.published.prices({"model": "gpt-x", "input": 1})
