"""A full publication writes its tokens in parts, while others change, publish, or empty the store."""

import signal
import time
from contextlib import suppress

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.utils import timezone

from controlplane.core import store as store_of
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing import publisher, rebuild
from controlplane.releases.publishing.models import OutboxEntry, Revision
from controlplane.releases.publishing.tasks import publish_pending
from tests.controlplane.stack.running import eventually
from tests.factories import ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

MARK, PLACE = "sg:{doc}:rebuild", "sg:{doc}:rebuild-place"


@pytest.fixture
def tokens(store, monkeypatch) -> list[Token]:
    """Five tokens in the order in which they are written, of which a part has two."""
    monkeypatch.setattr(rebuild, "TOKENS_AT_ONCE", 2)
    monkeypatch.setattr(rebuild, "PAUSE_SECONDS", -1)
    project = ProjectFactory()
    made = [TokenFactory(project=project) for _ in range(5)]
    publisher.publish_all()
    return sorted(made, key=lambda token: token.pk)


def after_part(monkeypatch, number: int, act) -> None:
    """Call *act* once, after so many parts were written."""
    write, seen = rebuild.Rebuild._write_after, []

    def written(self, *arguments):
        last = write(self, *arguments)
        seen.append(last)
        if len(seen) == number:
            act()
        return last

    monkeypatch.setattr(rebuild.Rebuild, "_write_after", written)


def raising(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


def revoke(token: Token) -> None:
    Token.objects.filter(pk=token.pk).update(revoked_at=timezone.now())
    OutboxEntry.objects.create(kind="token", object_id=token.digest)


def test_every_token_is_written_once(tokens, token_document, client_of_store, monkeypatch):
    """The last part may be full, half full or empty. Nothing of the rebuild is left, and its number is told."""
    client_of_store.delete(*[f"sg:{{doc}}:token:{token.digest}" for token in tokens])
    told = []

    number = publisher.publish_all(progress=lambda *numbers: told.append(numbers))

    assert [token_document(token.digest)["id"] for token in tokens] == [token.pk for token in tokens]
    assert told == [(2, 5), (4, 5), (5, 5), (5, 5)]
    assert Revision.objects.get(pk=number).changes["token_count"] == 5
    assert not client_of_store.exists(MARK)


@pytest.mark.parametrize("place", [0, 4])
def test_a_token_that_is_revoked_meanwhile_does_not_wait_for_the_end(tokens, token_document, monkeypatch, place):
    """It is published between two parts, whether it is in one that was written or in one that is still to be."""
    seen = []
    after_part(monkeypatch, 1, lambda: revoke(tokens[place]))
    after_part(monkeypatch, 2, lambda: seen.append(token_document(tokens[place].digest)["revoked"]))

    assert publisher.publish_all() == 3
    assert seen == [True]
    assert token_document(tokens[place].digest)["revoked"]


def test_an_outdated_part_is_refused_and_read_again(tokens, token_document, client_of_store, monkeypatch):
    """Another publisher revokes a token after the part with it was read: the part must not bring it back."""
    read, others = rebuild.compile.tokens_after, []

    def overtaken(*arguments):
        part = read(*arguments)
        if tokens[2].digest in part and not others:
            others.append(revoke(tokens[2]))
            publisher._publish_meanwhile(store_of.connection())
        return part

    monkeypatch.setattr(rebuild, "PAUSE_SECONDS", 60)
    monkeypatch.setattr(rebuild.compile, "tokens_after", overtaken)

    assert publisher.publish_all() == 3
    assert token_document(tokens[2].digest)["revoked"]


@pytest.mark.parametrize("part", [1, 4])
def test_a_store_that_is_emptied_meanwhile_gets_everything(tokens, token_document, client_of_store, monkeypatch, part):
    """Between two parts, and after the last one: the tokens that were written before are written again."""
    after_part(monkeypatch, part, client_of_store.flushall)

    publisher.publish_all()

    assert all(token_document(token.digest) for token in tokens)


def test_a_store_that_was_empty_and_is_emptied_again_gets_everything(
    tokens, token_document, client_of_store, monkeypatch
):
    """Its state is the same before and after, so only the mark shows that tokens were lost."""
    client_of_store.flushall()
    after_part(monkeypatch, 2, client_of_store.flushall)

    publisher.publish_all()

    assert all(token_document(token.digest) for token in tokens)


def test_a_second_rebuild_waits_for_the_first(tokens, client_of_store, monkeypatch):
    """Two that begin in turns would never end. What the second one should do stays pending."""
    client_of_store.set(MARK, "another", px=60_000)

    with pytest.raises(publisher.Postponed, match="Another publisher writes all tokens"):
        publisher.publish_all()
    assert client_of_store.get(MARK) == "another"

    client_of_store.delete(MARK)
    assert publisher.publish_pending() == 2


@pytest.mark.parametrize("publish", [publisher.publish_pending, publisher.publish_promptly])
def test_a_revocation_does_not_wait_for_the_mark_of_a_killed_rebuild(
    tokens, token_document, client_of_store, monkeypatch, publish
):
    """The mark stays for seconds. By the worker or within a request, only the rebuild itself waits for its end."""
    monkeypatch.setattr(publisher, "TOKENS_IN_A_REQUEST", 1)
    client_of_store.set(MARK, "killed", px=60_000)
    OutboxEntry.objects.create(kind="all")
    revoke(tokens[3])

    with suppress(publisher.Postponed):
        publish()

    assert token_document(tokens[3].digest)["revoked"]
    assert OutboxEntry.objects.get(revision=None).kind == "all"
    assert client_of_store.get(MARK) == "killed"


@pytest.mark.parametrize("emptied", [True, False])
def test_a_task_goes_on_where_the_last_one_stopped(tokens, token_document, client_of_store, monkeypatch, emptied):
    """Each task writes one part. What is revoked between two tasks is in the end refused, wherever it has its place."""
    read, parts = rebuild.compile.tokens_after, []
    monkeypatch.setattr(rebuild, "SLICE_SECONDS", -1)
    monkeypatch.setattr(rebuild.compile, "tokens_after", lambda last, *more: parts.append(last) or read(last, *more))
    OutboxEntry.objects.create(kind="all")
    if emptied:
        client_of_store.flushall()

    for place in (0, 4, 2, 3):
        assert publish_pending() is None
        assert client_of_store.pttl(MARK) > 60_000
        revoke(tokens[place])
    revision = publish_pending()

    assert parts == ["", tokens[1].pk, tokens[3].pk, tokens[4].pk]
    assert Revision.objects.get(pk=revision).changes["token_count"] == 5
    assert [token_document(token.digest)["revoked"] for token in tokens] == [True, False, True, True, True]
    assert not client_of_store.exists(MARK, PLACE)
    assert not OutboxEntry.objects.filter(revision=None).exists()


def test_a_task_that_is_stopped_by_its_time_limit_keeps_its_place(tokens, client_of_store, monkeypatch):
    """Celery raises its exception anywhere, also in the publication that ends the rebuild."""
    OutboxEntry.objects.create(kind="all")
    client_of_store.flushall()
    with monkeypatch.context() as patched:
        patched.setattr(publisher, "_send", raising(SoftTimeLimitExceeded()))
        with pytest.raises(SoftTimeLimitExceeded):
            publish_pending()
    monkeypatch.setattr(rebuild.Rebuild, "_write_after", raising(AssertionError("a token is written again")))

    assert publish_pending() == 2


def test_a_store_that_is_emptied_between_two_tasks_gets_everything(
    tokens, token_document, client_of_store, monkeypatch
):
    """The place is lost with the tokens."""
    OutboxEntry.objects.create(kind="all")
    with monkeypatch.context() as patched:
        patched.setattr(rebuild, "SLICE_SECONDS", -1)
        assert publish_pending() is None
    client_of_store.flushall()

    publish_pending()

    assert all(token_document(token.digest) for token in tokens)


def test_a_command_writes_the_tokens_that_a_task_has_written_before(
    tokens, token_document, client_of_store, monkeypatch
):
    """`publish --all` repairs every token, so it waits for no other rebuild and takes none over."""
    OutboxEntry.objects.create(kind="all")
    with monkeypatch.context() as patched:
        patched.setattr(rebuild, "SLICE_SECONDS", -1)
        assert publish_pending() is None
    client_of_store.delete(f"sg:{{doc}}:token:{tokens[0].digest}")

    publisher.publish_all()

    assert token_document(tokens[0].digest)["id"] == tokens[0].pk
    assert not client_of_store.exists(MARK, PLACE)


def test_a_rebuild_that_fails_leaves_no_mark(tokens, client_of_store, monkeypatch):
    """The next one can begin at once."""
    after_part(monkeypatch, 1, lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        publisher.publish_all()
    assert not client_of_store.exists(MARK)


def test_a_slow_end_of_a_rebuild_keeps_its_mark(tokens, client_of_store, monkeypatch):
    """Reading all other documents takes long in a large installation, and nothing is written to the store meanwhile."""
    read, lock = rebuild.compile.all_documents, "sg:{lock}:publish"
    monkeypatch.setattr(rebuild, "PROLONGED_SECONDS", 0.01)

    def slow():
        for key, left in ((MARK, 9_000), (lock, 4_000)):
            client_of_store.pexpire(key, left)
            assert eventually(lambda key=key, left=left: client_of_store.pttl(key) > left)
        return read()

    monkeypatch.setattr(rebuild.compile, "all_documents", slow)

    assert publisher.publish_all() == 2
    assert not client_of_store.exists(MARK, lock)


def test_a_rebuild_that_hangs_gives_way_to_revocations(tokens, token_document, client_of_store, monkeypatch):
    """As on a database that is cut off. What it reads when it goes on is not written, as another one came since."""
    read = rebuild.compile.tokens_after
    monkeypatch.setattr(rebuild, "PROLONGED_SECONDS", 0.01)
    monkeypatch.setattr(rebuild, "LONGEST_PART_SECONDS", 0.1)

    def hanging(*arguments):
        part = read(*arguments)
        if tokens[2].digest in part and not tokens[2].revoked_at:
            tokens[2].revoked_at = timezone.now()
            time.sleep(0.2)
            for key in (MARK, "sg:{lock}:publish"):
                client_of_store.pexpire(key, 50)
            assert eventually(lambda: not client_of_store.exists(MARK, "sg:{lock}:publish"))
            revoke(tokens[2])
            assert publisher.publish_pending() == 3  # the revocation and, as the whole is due too, all tokens
        return part

    monkeypatch.setattr(rebuild.compile, "tokens_after", hanging)

    publisher.publish_all()

    assert token_document(tokens[2].digest)["revoked"]


DIES_DURING_THE_REBUILD = """
import os, signal
from controlplane.releases.publishing import publisher, rebuild
rebuild.TOKENS_AT_ONCE = 2
write = rebuild.Rebuild._write_after
rebuild.Rebuild._write_after = lambda *some: (write(*some), os.kill(os.getpid(), signal.SIGKILL))
publisher.publish_all()
"""


def test_a_rebuild_of_an_empty_store_that_was_killed_begins_again_within_seconds(
    tokens, run_python, token_document, client_of_store
):
    """A store without documents gets no revocation before it has all of them, so the mark must not stay for longer."""
    client_of_store.flushall()
    assert run_python(DIES_DURING_THE_REBUILD).wait() == -signal.SIGKILL
    assert 0 < client_of_store.pttl(MARK) <= 10_000
    assert 0 < client_of_store.pttl("sg:{lock}:publish") <= 5_000
    revoke(tokens[3])

    client_of_store.delete(MARK, "sg:{lock}:publish")  # as their times to live would, later
    publisher.publish_pending()

    assert token_document(tokens[3].digest)["revoked"]
