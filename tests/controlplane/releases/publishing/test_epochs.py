"""The way back: SQL or the store is restored from a backup, and enforcers run that know a later state."""

import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.objects.projects.actions import delete_tokens, issue_token, revoke_token
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import OutboxEntry, Revision
from controlplane.releases.publishing.reconcile import reconcile
from enforcement import Limiter
from tests.enforcement.world import eventually
from tests.factories import PolicyFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)
NEW_EPOCH = {"all": True, "new_epoch": True, "reason": "SQL was restored from last night"}
FOLLOWS_SECONDS = 10.0


@pytest.fixture
def secret(store, actor):
    """A token that enforcers admit, at revision 1."""
    project = ProjectFactory(policy=PolicyFactory())
    with change(actor=actor) as tx:
        tx.created(project)
        _, secret = issue_token(tx, project=project, name="ci")
    return secret


@pytest.fixture
def revoked_and_restored(store, client_of_store, secret, actor, tmp_path):
    """
    Two enforcers saw the token revoked. Then SQL was restored from a backup of before, and the store emptied.

    One of them still runs. The other one was stopped, and has its state directory.
    """
    backup = {model: list(model.objects.values()) for model in (Token, Revision, OutboxEntry)}
    runs = Limiter(store.url, timeout=1.0, instance="runs")
    starts = Limiter(store.url, timeout=1.0, instance="starts", state_dir=tmp_path)
    with runs, starts:
        assert all(limiter.check(secret).allowed for limiter in (runs, starts))
        for _ in range(3):
            with change(actor=actor) as tx:
                revoke_token(tx, Token.objects.get())
            Token.objects.update(revoked_at=None)  # so that it can be revoked once more
        last = publisher.last_revision()
        assert last > 1
        assert eventually(lambda: all(limiter.revision == last for limiter in (runs, starts)))
        assert {limiter.check(secret).reason for limiter in (runs, starts)} == {"revoked"}
        starts.close()
        for model, rows in reversed(backup.items()):
            model.objects.exclude(pk__in=[row["id" if "id" in row else "number"] for row in rows]).delete()
        for model, rows in backup.items():
            for row in rows:
                model.objects.filter(pk=row["id" if "id" in row else "number"]).update(**row)
        client_of_store.flushall()
        yield runs, starts


def test_all_follow_a_new_epoch(revoked_and_restored, secret, client_of_store, store, tmp_path):
    """Whoever runs, or starts from its disk, obeys the restored SQL within seconds, though its number is lower."""
    runs, starts = revoked_and_restored
    assert publisher.last_revision() < runs.revision

    call_command("publish", **NEW_EPOCH)
    starts.start()

    assert eventually(lambda: all(limiter.check(secret).allowed for limiter in (runs, starts)), FOLLOWS_SECONDS)
    assert {limiter.stats().store_id.rpartition(".")[2] for limiter in (runs, starts)} == {"1"}
    assert Revision.objects.latest("number").epoch == 1
    entry = AuditEntry.objects.get(action="store.new_epoch")
    assert (entry.actor, entry.reason) == ("publish --all --new-epoch", NEW_EPOCH["reason"])


def test_all_follow_the_reconciler_without_a_new_epoch(revoked_and_restored, secret, client_of_store):
    """It publishes after the highest revision that a live instance reports, also if it has filled the store before."""
    runs, starts = revoked_and_restored
    highest = runs.revision
    reconcile()  # perhaps before anybody has sent a heartbeat to the emptied store
    starts.start()
    assert eventually(
        lambda: all(client_of_store.exists(f"sg:{{fleet}}:instance:{name}") for name in ("runs", "starts"))
    )

    assert eventually(
        lambda: reconcile() == [] and all(it.check(secret).allowed for it in (runs, starts)), FOLLOWS_SECONDS
    )
    assert publisher.last_revision() > highest
    assert Revision.objects.latest("number").epoch == 0


def test_a_store_that_was_set_back_is_repaired_above_what_instances_run(store, client_of_store, secret, actor):
    """A dump of the store from before a revocation never revives the token: not before the repair, and not after it."""
    with Limiter(store.url, timeout=1.0) as limiter:
        assert limiter.check(secret).allowed
        older = {key: client_of_store.dump(key) for key in client_of_store.keys("sg:{doc}:*")}
        with change(actor=actor) as tx:
            revoke_token(tx, Token.objects.get())
        assert eventually(lambda: limiter.check(secret).reason == "revoked")
        for key, text in older.items():
            client_of_store.restore(key, 0, text, replace=True)

        before = {limiter.check(secret).reason for _ in range(20)}
        lines = reconcile()
        assert lines == ["the store was at revision 1, SQL at revision 2"]
        assert eventually(lambda: limiter.revision == 3)
        assert before | {limiter.check(secret).reason} == {"revoked"}


def deleted(tx):
    delete_tokens(tx, Token.objects.all())


def expired(tx):
    Token.objects.update(expires_at=timezone.now() - timedelta(days=2))
    tx.touch("token", Token.objects.get().digest)


@pytest.mark.parametrize("end", [deleted, expired])
def test_a_token_that_sql_has_no_more_does_not_come_back_with_the_store(store, client_of_store, secret, actor, end):
    """The dump has its document. The repair removes that before anybody believes it, as no publication replaces it."""
    with Limiter(store.url, timeout=1.0) as limiter:
        older = {key: client_of_store.dump(key) for key in client_of_store.keys("sg:{doc}:*")}
        with change(actor=actor) as tx:
            end(tx)
        assert eventually(lambda: limiter.revision == 2)
        for key, text in older.items():
            client_of_store.restore(key, 0, text, replace=True)

        assert limiter.check(secret).reason == "degraded_denied"
        reconcile()
        assert eventually(lambda: limiter.revision == 3)
        assert limiter.check(secret).reason == "unknown_token"


def test_a_change_waits_for_the_repair_of_a_store_that_was_set_back(store, client_of_store, secret, actor):
    """The tokens of such a store are looked through, for which no request waits."""
    client_of_store.hset("sg:{doc}:documents", "revision", 7)

    with change(actor=actor) as tx:
        revoke_token(tx, Token.objects.get())
    assert tx.revision is None
    assert publisher.publish_pending() == 8


def test_an_identity_is_read_as_enforcers_read_it(store, client_of_store, secret):
    """Seven digits are no epoch. Else the store would refuse each new epoch, and nobody would obey it."""
    client_of_store.hset("sg:{doc}:documents", "store_id", "spoilt.9999999")

    call_command("publish", **NEW_EPOCH)

    assert client_of_store.hget("sg:{doc}:documents", "store_id").endswith(".1")


def test_no_epoch_follows_the_last_one(store, client_of_store, secret):
    """The command must not say that it began one."""
    Revision.objects.update(epoch=999_999)

    with pytest.raises(CommandError, match="--new-epoch: must not follow epoch 999999, which is the last one"):
        call_command("publish", **NEW_EPOCH)


def test_an_epoch_goes_on_after_the_store_was_emptied(store, client_of_store, secret):
    """SQL knows it. An enforcer of the epoch before obeys what comes after."""
    call_command("publish", **NEW_EPOCH)
    client_of_store.flushall()

    reconcile()

    assert client_of_store.hget("sg:{doc}:documents", "store_id").endswith(".1")
    assert Revision.objects.latest("number").epoch == 1
    call_command("publish", **NEW_EPOCH)
    assert client_of_store.hget("sg:{doc}:documents", "store_id").endswith(".2")


def test_an_absurd_revision_of_an_instance_is_not_followed(store, client_of_store, secret, caplog):
    """Numbers are used up once. An account that may only send heartbeats must not be able to do that."""
    with Limiter(store.url, timeout=1.0, instance="odd"):
        key = "sg:{fleet}:instance:odd"
        assert eventually(lambda: client_of_store.exists(key))
        heartbeat = json.loads(client_of_store.get(key)) | {"revision": 2**53 - 1}
        client_of_store.set("sg:{fleet}:instance:forged", json.dumps(heartbeat | {"id": "forged"}))
        client_of_store.zadd("sg:{fleet}:instances", {"forged": client_of_store.time()[0] * 1_000_000})

        assert reconcile() == []
        publisher.publish_all()

    assert publisher.last_revision() == 2
    assert "The revision that 'forged' reports is not plausible" in caplog.text


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"new_epoch": True, "reason": "x"}, "--new-epoch: requires --all"),
        ({"all": True, "new_epoch": True}, "--reason: must have 1 to 500 characters, got 0."),
        ({"all": True, "new_epoch": True, "reason": "x" * 501}, "--reason: must have 1 to 500 characters, got 501."),
        ({"all": True, "new_epoch": True, "reason": "  "}, "--reason: must have 1 to 500 characters, got 0."),
        ({"all": True, "reason": "x"}, "--reason: is only used with --new-epoch."),
    ],
)
def test_a_new_epoch_needs_everything_and_a_reason(store, options, error):
    """It overrules what instances know, so nobody begins one by chance. Nothing is published."""
    with pytest.raises(CommandError, match=error):
        call_command("publish", **options)

    assert not Revision.objects.exists()
    assert not OutboxEntry.objects.exists()
