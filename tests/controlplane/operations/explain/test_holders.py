"""The counters of many tokens and projects at once."""

import pytest
from django.utils import timezone

from controlplane.core import store as store_of
from controlplane.operations.explain import holders
from tests.factories import (
    LimitFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)


def sent(client):
    """How many calls the store has got. The commands inside of a call are not among them."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("fcall", "fcall_ro"))


def test_a_page_sends_at_most_so_many_commands(store):
    """Each project is on a server of its own, perhaps. Of 15, as many are read as the commands suffice for."""
    policy = LimitFactory(policy=PolicyFactory(slug="p"), name="per-hour", window_seconds=3_600).policy
    tokens = [TokenFactory(project=ProjectFactory(slug=f"p{number}"), policy=policy) for number in range(15)]
    now, client = timezone.now(), store_of.connection()
    held = holders.held_by(tokens, [], now)
    list(holders.read(client, held[:1], now))  # loads the library
    before = sent(client)

    found = list(holders.read(client, held, now, most=10))

    assert (holders.MOST_COMMANDS, len(found)) == (200, 9)
    assert sent(client) - before == 9


def test_many_counters_of_a_project_are_read_by_one_command(store):
    """Sixty tokens of one project have one hash tag."""
    policy = LimitFactory(policy=PolicyFactory(slug="p"), name="per-hour", window_seconds=3_600).policy
    project = ProjectFactory(slug="chat")
    tokens = [TokenFactory(project=project, policy=policy) for _ in range(60)]
    now, client = timezone.now(), store_of.connection()
    held = holders.held_by(tokens, [], now)
    list(holders.read(client, held[:1], now))  # loads the library
    before = sent(client)

    assert len(list(holders.read(client, held, now))) == 60
    assert sent(client) - before == 1
