"""From a row in SQL to what a metered door charges."""

import asyncio
import json
import time
from contextlib import closing

import pytest
from django.db import connection

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.objects.prices.actions import save_price
from controlplane.objects.prices.models import ModelPrice
from controlplane.objects.projects.actions import issue_token
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import OutboxEntry, Revision
from controlplane.releases.publishing.reconcile import reconcile
from controlplane.traffic.fleet import heartbeats
from enforcement import aio
from enforcement.doors.asgi import LimitMiddleware
from tests.enforcement.doors.metered.provider import Provider, ask
from tests.enforcement.world import eventually
from tests.factories import LimitFactory, ModelPriceFactory, PolicyFactory, ProjectFactory
from tests.loops import run

pytestmark = pytest.mark.django_db(transaction=True)

HELLO = {"model": "gpt-x", "max_tokens": 500, "messages": [{"role": "user", "content": "x" * 400}]}


@pytest.fixture
def prices(client_of_store):
    """What an enforcer would read, None when there is nothing."""

    def read():
        text = client_of_store.get("sg:{doc}:prices")
        return text and json.loads(text)

    return read


def set_price(actor, **fields):
    """Set the price of an operator, as each door does."""
    price = ModelPriceFactory.build(**fields)
    with change(actor=actor, reason="a contract") as tx:
        save_price(tx, price)
    return price, tx


def test_a_price_is_published_with_its_audit(store, actor, prices, settings):
    settings.CURRENCY = "EUR"
    ModelPriceFactory(of_the_catalogue=True, pattern="gpt-*")
    price, tx = set_price(actor, pattern="gpt-x", cached_input=5)

    assert prices() == {
        "schema": 1,
        "revision": tx.revision,
        "currency": "EUR",
        "overrides": [{"model": "gpt-x", "input": 1_000_000, "output": 4_000_000, "cached_input": 5}],
        "prices": [{"model": "gpt-*", "input": 1_000_000, "output": 4_000_000}],
    }
    entry = AuditEntry.objects.get(object_id=price.pk)
    assert (entry.action, entry.actor, entry.reason) == ("modelprice.create", "ann", "a contract")
    assert (entry.before, entry.after["currency"], entry.after["cached_input"]) == (None, "EUR", 5)


def test_prices_are_not_among_the_documents_that_every_enforcer_loads(store, actor, client_of_store):
    set_price(actor)
    assert not [name for name in client_of_store.hkeys("sg:{doc}:documents") if "price" in name]
    assert Revision.objects.get().changes["prices"] is True


def test_an_unchanged_price_is_no_change(store, actor):
    price, _ = set_price(actor)
    with change(actor=actor) as tx:
        save_price(tx, price)
    assert tx.is_empty
    assert Revision.objects.count() == 1


def test_the_last_price_that_is_deleted_takes_the_document_with_it(store, actor, prices):
    price, _ = set_price(actor)
    with change(actor=actor) as tx:
        tx.delete(price)
    assert prices() is None


def test_a_store_that_is_away_delays_the_publication(store, actor, prices):
    store.kill()
    price, tx = set_price(actor)
    assert (tx.revision, ModelPrice.objects.get()) == (None, price)
    assert OutboxEntry.objects.get(revision=None).kind == "prices"
    store.start()

    publisher.publish_pending()
    assert prices()["overrides"][0]["model"] == price.pattern


def test_an_installation_that_has_no_price_publishes_none(store, prices):
    ProjectFactory()
    publisher.publish_all()
    assert prices() is None


@pytest.mark.parametrize("found", [None, '{"schema": 1}', "no JSON", '{"schema":1,"revision":1,"prices":[]}'])
def test_a_store_with_other_prices_is_repaired(store, actor, prices, client_of_store, found):
    set_price(actor, pattern="gpt-x")
    if found is None:
        client_of_store.delete("sg:{doc}:prices")
    else:
        client_of_store.set("sg:{doc}:prices", found)

    assert reconcile(full=True) == ["the prices differed"]
    assert prices()["overrides"][0]["model"] == "gpt-x"
    assert reconcile(full=True) == []


def test_a_key_of_another_type_is_repaired(store, actor, client_of_store, prices):
    set_price(actor)
    client_of_store.delete("sg:{doc}:prices")
    client_of_store.hset("sg:{doc}:prices", "a", 1)
    assert reconcile(full=True) == ["the prices differed"]
    assert prices() is not None


def test_another_currency_is_a_difference(store, actor, prices, settings):
    set_price(actor)
    settings.CURRENCY = "CHF"
    assert reconcile(full=True) == ["the prices differed"]
    assert prices()["currency"] == "CHF"


def test_rows_that_no_enforcer_would_read_leave_the_last_good_prices(store, actor, prices):
    """Another program has written to the table; SQL and the store are then not said to differ for ever."""
    price, _ = set_price(actor)
    good = prices()
    ModelPrice.objects.filter(pk=price.pk).update(tiers=[{"above_input": -1}])

    publisher.publish_all()
    assert prices() == good
    assert reconcile(full=True) == []


def test_the_door_charges_by_the_new_price_and_says_which_it_uses(store, actor):
    """Within a second, and the control plane learns which instances do."""
    policy = LimitFactory(policy=PolicyFactory(), name="usd", unit="micros", quota=10_000_000).policy
    project = ProjectFactory(policy=policy)
    with change(actor=actor) as tx:
        tx.created(policy)
        tx.created(project)
        _, secret = issue_token(tx, project=project, name="ci")
    price, first = set_price(actor, pattern="gpt-*", input=1_000_000, output=4_000_000)

    def dearer():
        price.output = 40_000_000
        with closing(connection), change(actor=actor) as tx:
            save_price(tx, price)
        return tx.revision

    async def charged():
        async with aio.Limiter(store.url, timeout=1.0, lookup=1.0) as limiter:
            door = LimitMiddleware(Provider(), limiter, metered=True)
            costs = []
            for _ in range(2):
                before = (await limiter.check(secret, {"requests": 0, "micros": 0})).remaining
                assert (await ask(door, secret, HELLO)).status == 200
                costs.append(before - (await limiter.check(secret, {"requests": 0, "micros": 0})).remaining)
                if len(costs) == 1:
                    assert limiter.prices.revision == first.revision
                    later = await asyncio.to_thread(dearer)
                    began = time.monotonic()
                    while limiter.prices.revision < later:
                        assert time.monotonic() - began < 5.0
                        await asyncio.sleep(0.005)

            def acknowledged():
                return heartbeats.price_acknowledged(later, heartbeats.live_instances()) == (1, 1)

            assert await asyncio.to_thread(eventually, acknowledged)
            return costs

    assert run(charged()) == [220, 1_300]


def test_an_instance_that_meters_nothing_is_not_counted(instance):
    instance("one", price_revision=7)
    instance("two", price_revision=6)
    both = [instance("three"), *heartbeats.Instance.objects.filter(pk__in=["one", "two"])]
    assert heartbeats.price_acknowledged(7, both) == (1, 2)
