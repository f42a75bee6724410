"""What is carried into a window outlives the store, as the usage of a window does."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.objects.projects.models import Token
from controlplane.operations.explain import live_counters
from controlplane.releases.publishing import publisher
from controlplane.traffic.usage import checkpoints
from controlplane.traffic.usage.models import Checkpoint
from enforcement import Limiter
from enforcement.model.calendars import window
from tests.controlplane.traffic.usage.conftest import checkpoint
from tests.factories import LimitFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

NOW_US = int(datetime.now(UTC).timestamp() * 1_000_000)
LAST_MONTH_US = window(window(NOW_US, "month")[0] - 1, "month")[0]
MONTH_BEFORE_US = window(LAST_MONTH_US - 1, "month")[0]


def check_at(at_us: int, store, token: Token, cost: int) -> None:
    with Limiter(store.url, timeout=1.0, clock=lambda: at_us) as limiter:
        decision = limiter.check(token.secret, costs=cost)
        assert (decision.source, decision.allowed) == ("store", True)


@pytest.fixture
def new_token(store) -> Token:
    """A token of 10 requests a month that has used none."""
    limit = LimitFactory(quota=10, window_seconds=None, calendar="month", rollover=20)
    token = TokenFactory(policy=limit.policy)
    publisher.publish_all()
    return token


@pytest.fixture
def token(store, new_token) -> Token:
    """A token that used 6 of 10 requests last month."""
    check_at(LAST_MONTH_US, store, new_token, 6)
    return new_token


def check(store, token: Token, cost: int) -> None:
    with Limiter(store.url, timeout=1.0) as limiter:
        decision = limiter.check(token.secret, costs=cost)
        assert (decision.source, decision.allowed) == ("store", True)


def seen(token: Token) -> tuple[int | None, int | None]:
    (counter,) = live_counters.counters_of(token)
    return counter.used, counter.remaining


def test_what_last_month_left_is_seen_and_is_not_used(token):
    """14 remain of a quota of 10, and none is used."""
    assert seen(token) == (0, 14)


def test_a_month_that_is_over_is_restored_for_what_it_left(token, client_of_store):
    """The store lost it before anything was charged in this month."""
    assert checkpoint().kept == 1
    client_of_store.flushall()

    assert checkpoint().restored == 1
    assert seen(token) == (0, 14)


def test_what_was_carried_is_restored_with_the_usage(token, store, client_of_store):
    """The counter of this month, which began with what the last one left."""
    check(store, token, 11)
    assert checkpoint().kept == 1
    client_of_store.flushall()

    assert checkpoint().restored == 1
    assert seen(token) == (11, 3)


def test_a_counter_that_was_lost_alone_gets_back_what_it_carried(token, store, client_of_store):
    """It began anew in the same month, and its usage is the greater of both."""
    check(store, token, 11)
    checkpoint()
    (key,) = client_of_store.keys(f"sg:{{{token.project_id}}}:c:*")
    client_of_store.delete(key)
    check(store, token, 1)
    assert seen(token) == (1, 9)

    assert checkpoint().restored == 1
    assert seen(token) == (11, 3)


def test_a_store_that_is_set_back_to_last_month_is_raised_to_this_one(token, store, client_of_store):
    """A copy of the store is older than the checkpoint."""
    (key,) = client_of_store.keys(f"sg:{{{token.project_id}}}:c:*")
    older = client_of_store.dump(key)
    check(store, token, 11)
    checkpoint()
    client_of_store.flushall()
    client_of_store.restore(key, 3_600_000, older)

    assert checkpoint().restored == 1
    assert seen(token) == (11, 3)


@pytest.mark.parametrize(("last_month", "left"), [(14, 9), (9, 14)])
def test_a_month_that_a_store_set_back_forgot_was_not_idle(new_token, store, client_of_store, last_month, left):
    """A copy of the store knows only the month before it. What the month left is known to the checkpoint."""
    check_at(MONTH_BEFORE_US, store, new_token, 6)
    (key,) = client_of_store.keys(f"sg:{{{new_token.project_id}}}:c:*")
    older = client_of_store.dump(key)
    check_at(LAST_MONTH_US, store, new_token, last_month)
    check(store, new_token, 1)
    checkpoint()
    client_of_store.restore(key, 3_600_000, older, replace=True)
    check(store, new_token, 1)

    assert checkpoint().restored == 1
    assert seen(new_token) == (1, left)


@pytest.mark.parametrize("older", ["set back", "lost"])
def test_a_month_that_only_the_checkpoint_knows_was_not_idle(new_token, store, client_of_store, older):
    """The store was set back behind it, or lost its counter, and is in use again in the next month."""
    check_at(MONTH_BEFORE_US, store, new_token, 6)
    (key,) = client_of_store.keys(f"sg:{{{new_token.project_id}}}:c:*")
    copy = client_of_store.dump(key)
    check_at(LAST_MONTH_US, store, new_token, 11)
    checkpoint()
    client_of_store.delete(key)
    if older == "set back":
        client_of_store.restore(key, 3_600_000, copy)
    check(store, new_token, 1)

    # 4 of 10 were left to last month, and 3 of these 14 to this one.
    assert checkpoint().restored == 1
    assert seen(new_token) == (1, 12)
    check(store, new_token, 1)
    assert (checkpoint().restored, seen(new_token)) == (0, (2, 11))


def test_a_checkpoint_is_kept_as_long_as_it_carries(token):
    """Not only to the end of its month."""
    checkpoint()
    kept_until = datetime.fromtimestamp(Checkpoint.objects.get().kept_until_us / 1_000_000, UTC)
    assert kept_until > timezone.now() + timedelta(days=8 * 365)

    assert checkpoints.prune(timezone.now()) == 0
    assert checkpoints.prune(kept_until + timedelta(seconds=1)) == 1


def test_a_reset_forgets_what_was_carried_too(token, store, client_of_store, actor):
    """The counter is new, and so nothing of it is restored."""
    check(store, token, 11)
    checkpoint()
    with change(actor=actor) as tx:
        live_counters.reset(tx, token)

    assert seen(token) == (0, 10)
    check(store, token, 1)
    checkpoint()
    assert seen(token) == (1, 9)
    client_of_store.flushall()
    checkpoint()
    assert seen(token) == (1, 9)
