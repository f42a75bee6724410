import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.objects.policies.models import Limit
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import OutboxEntry, Revision
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


def ask_for(kind: str, object_id: str = "") -> None:
    OutboxEntry.objects.create(kind=kind, object_id=object_id, by="ann", channel="api")


def test_an_empty_outbox_publishes_nothing(store):
    """A revision is a change: without one there is no new number."""
    assert publisher.publish_pending() is None
    assert not Revision.objects.exists()


def test_the_present_state_is_published(store, document):
    """What counts is the row as it is now, not as it was when the outbox entry was written."""
    limit = LimitFactory(name="minute", quota=100)
    ask_for("policy", limit.policy_id)
    Limit.objects.update(quota=150)

    publisher.publish_pending()

    assert document(f"policy:{limit.policy_id}")["limits"] == [
        {"name": "minute", "algorithm": "fixed_window", "quota": 150, "window_seconds": 60}
    ]


def test_the_bound_of_each_leased_limit_is_published(store, document):
    """Whoever reads a policy is told how many permits leases may leave unused; a limit without leases has no bound."""
    policy = PolicyFactory()
    LimitFactory(policy=policy, name="minute", quota=1_005, consistency="leased")
    LimitFactory(policy=policy, name="bucket", algorithm="token_bucket", burst=50, quota=9_000, consistency="leased")
    LimitFactory(policy=policy, name="day", quota=100)
    strict = LimitFactory(name="strict").policy
    ask_for("policy", policy.pk)
    ask_for("policy", strict.pk)

    publisher.publish_pending()

    assert document(f"policy:{policy.pk}")["unused_max"] == {"minute": 100, "bucket": 4}
    assert "unused_max" not in document(f"policy:{strict.pk}")


def test_many_changes_are_one_revision(store):
    """What waited together goes out together."""
    ask_for("project", ProjectFactory().pk)
    ask_for("project", ProjectFactory().pk)

    assert publisher.publish_pending() == 1
    assert OutboxEntry.objects.filter(revision=1).count() == 2


def test_a_revision_says_what_changed_and_who_did_it(store):
    """A revision can be read by people: documents, tokens by prefix, and no digest."""
    publisher.publish_all()
    token = TokenFactory(project=ProjectFactory())
    ask_for("token", token.digest)
    ask_for("project", token.project_id)

    number = publisher.publish_pending()

    revision = Revision.objects.get(pk=number)
    assert (revision.by, revision.channel) == ("ann", "api")
    assert list(revision.changes["documents"]) == [f"project:{token.project_id}"]
    assert revision.changes["tokens"] == [{"id": token.pk, "prefix": token.prefix}]
    assert token.digest not in json.dumps(revision.changes)


def test_a_token_is_published_by_its_digest(store, token_document, client_of_store):
    """An enforcer finds a token by digest; the key ends a day after the token, so that "expired" can be said."""
    token = TokenFactory(expires_at=timezone.now() + timedelta(hours=1))
    ask_for("token", token.digest)

    publisher.publish_pending()

    assert token_document(token.digest)["project"] == token.project_id
    lifetime = client_of_store.pttl(f"sg:{{doc}}:token:{token.digest}")
    assert 24.9 * 3600_000 < lifetime <= 25 * 3600_000


def test_an_emptied_store_gets_everything(store, document, client_of_store):
    """A piece alone would leave the store with a policy less than SQL, and a limit lifted."""
    policy, project = PolicyFactory(), ProjectFactory()
    publisher.publish_all()
    client_of_store.flushall()
    ask_for("project", project.pk)

    assert publisher.publish_pending() == 2
    assert document(f"policy:{policy.pk}")["slug"] == policy.slug


def test_a_store_that_is_emptied_while_a_change_is_compiled_gets_everything(
    store, document, client_of_store, monkeypatch
):
    """The piece that was meant for the full store is refused by the empty one, and all of it is sent."""
    policy, project = PolicyFactory(), ProjectFactory()
    publisher.publish_all()
    make_whole, emptied = publisher._restore_counters, []

    def empty_once(client, *arguments):
        make_whole(client, *arguments)
        if not emptied:
            emptied.append(client_of_store.flushall())

    monkeypatch.setattr(publisher, "_restore_counters", empty_once)
    ask_for("project", project.pk)

    assert publisher.publish_pending() == 2
    assert document(f"policy:{policy.pk}")["slug"] == policy.slug
    assert client_of_store.smembers(f"sg:{{{project.pk}}}:changed") == {"whole"}
    assert Revision.objects.get(pk=2).changes["full"]


def test_revisions_go_on_after_the_store_was_emptied(store, client_of_store):
    """An enforcer that holds revision 2 is never told to go back to 1."""
    publisher.publish_all()
    publisher.publish_all()
    client_of_store.flushall()

    assert publisher.publish_all() == 3
    assert client_of_store.hget("sg:{doc}:documents", "revision") == "3"


def test_an_emptied_store_gets_another_identity(store, client_of_store):
    """Enforcers see that the counters are gone, since the store is not the one they knew."""
    publisher.publish_all()
    former = client_of_store.hget("sg:{doc}:documents", "store_id")
    client_of_store.flushall()

    publisher.publish_all()

    assert client_of_store.hget("sg:{doc}:documents", "store_id") != former


def test_a_full_publication_removes_what_sql_does_not_have(store, document, client_of_store):
    """SQL is the truth."""
    publisher.publish_all()
    client_of_store.hset("sg:{doc}:documents", "policy:pol_ghost", "{}")

    publisher.publish_all()

    assert document("policy:pol_ghost") is None


def test_a_crash_after_the_store_took_it_publishes_again(store, client_of_store, monkeypatch):
    """SQL did not learn that the store has revision 1: the same state goes out as revision 2."""
    project = ProjectFactory()
    ask_for("project", project.pk)
    with monkeypatch.context() as patch:
        patch.setattr(publisher, "save_revision", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publisher.publish_pending()

    assert publisher.publish_pending() == 2
    assert client_of_store.hget("sg:{doc}:documents", "revision") == "2"
    assert not OutboxEntry.objects.filter(revision=None).exists()


def test_what_is_changed_during_a_publication_is_published_too(store, monkeypatch):
    """Whoever changed it was sent away by the lock, and relies on the publisher at work."""
    ask_for("project", ProjectFactory().pk)
    save, late = publisher.save_revision, iter([ProjectFactory().pk])

    def save_and_change(*args):
        for pk in late:
            ask_for("project", pk)
        return save(*args)

    monkeypatch.setattr(publisher, "save_revision", save_and_change)

    assert publisher.publish_pending() == 2
    assert not OutboxEntry.objects.filter(revision=None).exists()


def test_an_expired_token_is_named_but_no_longer_published(store, token_document):
    """For a day it stays published, so that its holder learns why it is refused."""
    publisher.publish_all()
    now = timezone.now()
    over, recent = (TokenFactory(expires_at=now - timedelta(hours=hours)) for hours in (25, 23))
    for token in (over, recent):
        ask_for("token", token.digest)

    number = publisher.publish_pending()

    assert token_document(over.digest) is None
    assert token_document(recent.digest)["id"] == recent.pk
    assert {named["id"] for named in Revision.objects.get(pk=number).changes["tokens"]} == {over.pk, recent.pk}


def test_a_publisher_that_was_overtaken_compiles_again(store, document, monkeypatch):
    """A slow publisher cannot put an older state over a newer one: the store refuses it, and it starts over."""
    limit = LimitFactory(name="minute", quota=100)
    publisher.publish_all()
    ask_for("policy", limit.policy_id)
    send, overtaken = publisher._send, []

    def overtake_once(client, publication, rebuilt):
        if not overtaken:
            overtaken.append(publication.revision)
            Limit.objects.update(quota=200)
            ask_for("policy", limit.policy_id)
            publisher.publish_next(client)
        return send(client, publication, rebuilt)

    monkeypatch.setattr(publisher, "_send", overtake_once)
    publisher.publish_pending()

    assert overtaken == [2]
    assert document(f"policy:{limit.policy_id}")["limits"][0]["quota"] == 200


def test_a_request_does_not_write_the_whole_store_when_that_takes_long(store, actor, monkeypatch):
    """A person who saves one policy does not wait for a hundred thousand tokens: Celery refills the store."""
    monkeypatch.setattr(publisher, "TOKENS_IN_A_REQUEST", 0)
    token = TokenFactory()

    with change(actor=actor) as tx:
        tx.created(token)

    assert tx.revision is None
    assert publisher.publish_pending() == 1


def test_two_publishers_at_once_do_not_mix(store, document, client_of_store, monkeypatch, actor):
    """Even when the lock fails, the highest revision wins, and it holds what SQL holds."""
    monkeypatch.setattr(publisher, "hold", lambda *_, **__: nullcontext(1))
    limits = [LimitFactory(quota=1), LimitFactory(quota=1)]
    publisher.publish_all()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(raise_quota_twenty_times, limits, [actor, actor]))
    publisher.publish_pending()

    for limit in limits:
        assert document(f"policy:{limit.policy_id}")["limits"][0]["quota"] == 21
    numbers = [int(entry.partition("-")[0]) for entry, _ in client_of_store.xrange("sg:{doc}:log")]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == publisher.last_revision() == int(client_of_store.hget("sg:{doc}:documents", "revision"))


def raise_quota_twenty_times(limit: Limit, actor) -> None:
    for _ in range(20):
        before = limit.as_record()
        with change(actor=actor) as tx:
            limit.quota += 1
            limit.save()
            tx.updated(limit, before)
    connection.close()


def test_a_policy_that_cannot_be_enforced_keeps_its_last_good_state(store, document):
    """Somebody wrote nonsense into the table: that policy stays as it was, and the others still go out."""
    limit, project = LimitFactory(quota=100), ProjectFactory()
    publisher.publish_all()
    Limit.objects.update(window_seconds=0)
    ask_for("policy", limit.policy_id)
    ask_for("project", project.pk)

    assert publisher.publish_pending() == 2
    assert document(f"policy:{limit.policy_id}")["limits"][0]["window_seconds"] == 60


def test_a_missing_function_library_is_loaded(store, client_of_store):
    """A store that lost the functions gets them back from whoever first misses them."""
    publisher.publish_all()
    client_of_store.function_flush()

    assert publisher.publish_all() == 2


def test_another_publisher_at_work_is_left_alone(store, client_of_store, monkeypatch):
    """Only one publishes at a time; what is left is the other's, or the next run's."""
    monkeypatch.setattr(publisher, "LOCK_WAIT_MS", 10)
    client_of_store.set("sg:{lock}:publish", "another")
    ask_for("project", ProjectFactory().pk)

    assert publisher.publish_pending() is None
    assert OutboxEntry.objects.filter(revision=None).count() == 1
