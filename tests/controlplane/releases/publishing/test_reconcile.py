import pytest

from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.projects.actions import revoke_token
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing import reconcile as reconciler
from controlplane.releases.publishing.models import OutboxEntry, Revision
from controlplane.releases.publishing.reconcile import reconcile
from enforcement import Limiter
from enforcement.lua import LIBRARY_NAME
from enforcement.model.tokens import mint
from tests.enforcement.world import eventually
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def everything_published(store):
    """A store that holds what SQL holds: a policy, a project and a token."""
    LimitFactory()
    TokenFactory()
    publisher.publish_all()


@pytest.mark.parametrize("full", [False, True])
def test_a_store_that_is_right_is_left_alone(everything_published, full):
    """Without a difference nothing is published."""
    assert reconcile(full=full) == []
    assert Revision.objects.count() == 1


def test_an_emptied_store_is_refilled(everything_published, client_of_store, document, token_document):
    """A store that lost everything gets documents, tokens and functions back, by the cheap look already."""
    client_of_store.flushall()
    client_of_store.function_flush()

    assert reconcile() == ["the function library was missing", "the store was empty"]
    assert token_document(Token.objects.get().digest)["id"] == Token.objects.get().pk
    assert document("global") == {"schema": 1, "policy": None}


def test_a_store_that_never_had_anything_is_filled(store, document):
    """A new store is usable without a first change: enforcers find a revision."""
    assert reconcile() == ["the function library was missing", "nothing was published yet"]
    assert document("global") == {"schema": 1, "policy": None}


def test_a_missing_function_library_is_loaded(everything_published, client_of_store):
    """Enforcers with few rights cannot load it themselves."""
    client_of_store.function_flush()

    assert reconcile() == ["the function library was missing"]
    assert client_of_store.function_list(library=LIBRARY_NAME)


def test_a_store_that_was_set_back_is_brought_forward(everything_published, client_of_store):
    """A back-up of the store, restored, is older than SQL."""
    publisher.publish_all()
    client_of_store.hset("sg:{doc}:documents", "revision", 1)

    assert reconcile() == ["the store was at revision 1, SQL at revision 2"]
    assert client_of_store.hget("sg:{doc}:documents", "revision") == "3"


def test_sql_that_was_set_back_wins_over_the_store(everything_published, client_of_store):
    """A back-up of SQL, restored, is the truth; the revision still goes up."""
    client_of_store.hset("sg:{doc}:documents", "revision", 40)

    assert reconcile() == ["the store was at revision 40, SQL at revision 1"]
    assert client_of_store.hget("sg:{doc}:documents", "revision") == "41"


def test_a_missing_document_is_noticed_at_once(everything_published, client_of_store, document):
    """A policy less is a limit less: counting them is cheap."""
    name = f"policy:{LimitFactory._meta.model.objects.get().policy_id}"
    client_of_store.hdel("sg:{doc}:documents", name)

    assert reconcile() == ["the store had 2 documents, SQL 3"]
    assert document(name) is not None


@pytest.mark.parametrize("text", ['{"schema":1,"limits":[]}', "no JSON", "[]"])
def test_a_document_that_was_tampered_with_is_repaired(everything_published, client_of_store, document, text):
    """Somebody wrote to the store: the full comparison finds it and says which."""
    project = ProjectFactory()
    publisher.publish_all()
    client_of_store.hset("sg:{doc}:documents", f"project:{project.pk}", text)

    assert reconcile(full=True) == [f"the document project:{project.pk} differed"]
    assert document(f"project:{project.pk}")["slug"] == project.slug


def test_bytes_that_are_no_text_are_repaired(everything_published, client_of_store, document):
    """Whatever somebody wrote, the comparison goes on and replaces it."""
    client_of_store.hset("sg:{doc}:documents", "global", b"\xff\xfe")

    assert reconcile(full=True) == ["the document global differed"]
    assert document("global") == {"schema": 1, "policy": None}


def test_a_revision_that_is_no_number_is_repaired(everything_published, client_of_store):
    """It would make every publication fail, for ever."""
    client_of_store.hset("sg:{doc}:documents", "revision", "eleven")

    assert reconcile() == ["the revision was not a number", "the store was empty"]
    assert client_of_store.hget("sg:{doc}:documents", "revision") == "2"


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("revision", "9" * 30, "the revision was not a number"),
        ("revision", "\u0663", "the revision was not a number"),
        ("revision", 2**53 - 1, "the revision 9007199254740991 was not plausible"),
        ("store_id", "", "the identity of the store was not valid"),
        ("store_id", "x" * 65, "the identity of the store was not valid"),
        ("store_id", "caf\xe9", "the identity of the store was not valid"),
    ],
)
def test_a_state_that_no_enforcer_can_read_is_replaced(
    everything_published, client_of_store, store, field, value, line
):
    """Before, every further change was refused by the store or by the enforcers, for ever."""
    client_of_store.hset("sg:{doc}:documents", field, value)
    publisher.publish_promptly()

    assert reconcile() == [line, "the store was empty"]
    assert publisher.last_revision() == 2
    with Limiter(store.url, timeout=1.0) as limiter:
        assert eventually(lambda: limiter.revision == 2)


@pytest.mark.parametrize("text", ["", "x", "0 other", "1 other"])
def test_a_garbled_state_beside_the_tokens_is_replaced(everything_published, client_of_store, store, text):
    """Before, every token that an instance had not met was refused until the next publication."""
    client_of_store.set("sg:{doc}:token:revision", text)

    assert reconcile() == [f"the store had {text!r} beside its tokens, not its state"]
    assert reconcile() == []
    with Limiter(store.url, timeout=1.0) as limiter:
        assert eventually(lambda: limiter.revision == 2)
        assert limiter.check(mint("live")).reason == "unknown_token"


def test_a_change_does_not_follow_a_revision_that_is_not_plausible(everything_published, client_of_store):
    """It would use up the numbers that are left. The change waits for the reconciler."""
    client_of_store.hset("sg:{doc}:documents", "revision", 2**53 - 1)
    OutboxEntry.objects.create(kind="all")

    with pytest.raises(publisher.Postponed, match="revision 9007199254740991, which is not plausible"):
        publisher.publish_pending()
    assert reconcile() == ["the revision 9007199254740991 was not plausible"]
    assert publisher.last_revision() == 2


def test_documents_that_are_no_hash_are_repaired(everything_published, client_of_store, document):
    """A key of another type in their place is removed and they are written anew."""
    client_of_store.set("sg:{doc}:documents", "x")

    assert reconcile() == ["the documents were not a hash", "the store was empty"]
    assert document("global") == {"schema": 1, "policy": None}


def test_a_document_that_nobody_published_is_removed(everything_published, client_of_store, document):
    """A policy of somebody else's making does not stay."""
    client_of_store.hset("sg:{doc}:documents", "policy:pol_ghost", "{}")

    reconcile(full=True)

    assert document("policy:pol_ghost") is None


def test_a_lost_token_is_brought_back(everything_published, client_of_store, token_document):
    """A token that the store lost would be refused everywhere."""
    token = Token.objects.get()
    client_of_store.delete(f"sg:{{doc}}:token:{token.digest}")

    assert reconcile(full=True) == [f"the token {token.pk} differed"]
    assert token_document(token.digest)["id"] == token.pk


def test_a_revoked_token_does_not_come_back_with_a_backup(everything_published, client_of_store, token_document):
    """Revoked in SQL is revoked, whatever an older store says."""
    token = Token.objects.get()
    Token.objects.update(revoked_at=token.created_at)

    reconcile(full=True)

    assert token_document(token.digest)["revoked"] is True


def test_a_pending_change_is_published_and_no_difference(everything_published, document):
    """What is only late is not reported as an error."""
    project = ProjectFactory()
    OutboxEntry.objects.create(kind="project", object_id=project.pk)

    assert reconcile(full=True) == []
    assert document(f"project:{project.pk}")["slug"] == project.slug


def test_a_publisher_at_work_is_no_difference(everything_published, client_of_store):
    """Between the store's write and SQL's mark the two differ, and nothing is wrong."""
    client_of_store.set("sg:{lock}:publish", "another")
    PolicyFactory()

    assert reconcile(full=True) == []


def test_repairs_are_revisions_with_a_name(everything_published, client_of_store):
    """In the list of revisions one sees that it was the reconciler."""
    client_of_store.flushall()

    reconcile()

    revision = Revision.objects.first()
    assert (revision.number, revision.by, revision.channel) == (2, "reconcile", "task")


def test_a_store_of_an_earlier_version_gets_the_key_of_decision_ids(everything_published, client_of_store):
    """Without a publication; it is the same again in a store that was emptied, so that old ids can be read."""
    key = client_of_store.get("sg:{doc}:decision-key")
    client_of_store.delete("sg:{doc}:decision-key")

    assert reconcile() == []
    assert client_of_store.get("sg:{doc}:decision-key") == key
    assert len(key) == 64


def test_a_revocation_does_not_wait_for_the_comparison(everything_published, token_document, monkeypatch):
    """It takes a second for some 30,000 tokens. What differs only because it was changed meanwhile is no difference."""
    compare, token = reconciler._differing_tokens, Token.objects.get()
    seen = []

    def compared(client, tokens):
        if not seen:
            with change(actor=Actor("ann", "api")) as tx:
                revoke_token(tx, token)
            seen.append(tx.revision)
        return compare(client, tokens)

    monkeypatch.setattr(reconciler, "_differing_tokens", compared)

    assert reconcile(full=True) == []
    assert seen == [2]
    assert token_document(token.digest)["revoked"]
    assert Revision.objects.count() == 2


def test_tokens_are_compared_in_slices(everything_published, client_of_store, monkeypatch):
    """A task ends after a slice, and the next one goes on. After the last token it begins again."""
    tokens = sorted([*Token.objects.all(), TokenFactory(), TokenFactory()], key=lambda token: token.pk)
    publisher.publish_all()
    monkeypatch.setattr(reconciler, "TOKEN_BATCH", 2)
    monkeypatch.setattr(reconciler, "SLICE_SECONDS", -1)
    lines = [f"the token {token.pk} differed" for token in tokens]
    for token in tokens:
        client_of_store.set(f"sg:{{doc}}:token:{token.digest}", "{}")

    assert reconcile(full=True) == lines[:2]
    client_of_store.set(f"sg:{{doc}}:token:{tokens[0].digest}", "{}")
    assert [reconcile(full=True) for _ in range(3)] == [lines[2:], [], lines[:1]]
