"""A changed, deleted or inserted audit entry is found, and named."""

import io
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from controlplane.changes.audit import chain, tasks
from controlplane.changes.audit.models import AuditEntry, AuditSeal
from controlplane.changes.change.transaction import Actor, change
from tests.controlplane.changes.audit.conftest import NOON
from tests.factories import PolicyFactory

pytestmark = pytest.mark.django_db(transaction=True)

LATER = NOON + timedelta(hours=5)


@pytest.fixture
def sealed(entry) -> list[AuditEntry]:
    """Five entries in the chain, written in another order than that of their ids."""
    written = [entry(minute) for minute in (1, 3, 2, 5, 4)]
    assert chain.seal(LATER) == 5
    return sorted(written, key=lambda one: one.pk)


def tamper(table: str, sql: str, *values) -> None:
    """Change a row as somebody does who has the database, and on PostgreSQL also the right to switch triggers off."""
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER sluicegate_keep_audit")
        cursor.execute(sql, values)
        if connection.vendor == "postgresql":
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER sluicegate_keep_audit")


def broken(*noted: chain.Head) -> list[tuple[int | None, str]]:
    return [(one.number, one.entry_id) for one in chain.verify(LATER, noted)]


def test_entries_are_sealed_once_in_the_order_of_their_ids(sealed):
    """Whatever the order in which they were committed."""
    assert list(AuditSeal.objects.values_list("number", "entry_id")) == [
        (number, one.pk) for number, one in enumerate(sealed, start=1)
    ]
    assert chain.seal(LATER) == 0
    assert broken() == []


def test_a_late_commit_follows(sealed, entry):
    """A writer that was slower than the seal of the next one loses nothing."""
    late = entry(0)

    assert chain.seal(LATER) == 1
    assert AuditSeal.objects.get(entry_id=late.pk).number == 6
    assert broken() == []


def test_what_is_just_written_is_not_sealed_yet(entry):
    """Another writer may be about to commit an earlier id."""
    at = entry(1).at

    assert chain.seal(at + timedelta(seconds=9)) == 0
    assert chain.seal(at + timedelta(seconds=10)) == 1


def test_many_entries_take_several_runs(entry, monkeypatch):
    """After an upgrade there are all entries of years."""
    monkeypatch.setattr(chain, "AT_ONCE", 2)
    for minute in range(5):
        entry(minute)

    assert [chain.seal(LATER, most=2) for _ in range(4)] == [2, 2, 1, 0]
    assert broken() == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("actor", "bob"),
        ("reason", "x"),
        ("after", '{"name": "other"}'),
        ("project", "proj_2"),
        ("at", "2026-11-24 12:03:01"),
    ],
)
def test_a_changed_entry_is_named(sealed, column, value):
    """Each column is part of the digest."""
    tamper("policies_auditentry", f"UPDATE policies_auditentry SET {column} = %s WHERE id = %s", value, sealed[2].pk)

    assert broken() == [(3, sealed[2].pk)]


def test_a_deleted_entry_is_named(sealed):
    """Its seal is still there."""
    tamper("policies_auditentry", "DELETE FROM policies_auditentry WHERE id = %s", sealed[1].pk)

    assert broken() == [(2, sealed[1].pk)]


def test_an_entry_that_is_deleted_with_its_seal_leaves_a_gap(sealed):
    """The next one does not follow from the one before."""
    tamper("policies_auditentry", "DELETE FROM policies_auditentry WHERE id = %s", sealed[1].pk)
    tamper("audit_auditseal", "DELETE FROM audit_auditseal WHERE number = %s", 2)

    assert broken() == [(2, "")]


def test_an_inserted_entry_is_named(sealed, entry):
    """It claims a time at which the chain was closed already."""
    forged = entry(-300)
    chain.seal(LATER)

    assert broken() == [(None, forged.pk)]


def test_a_chain_that_was_computed_anew_differs_from_what_was_noted(sealed):
    """Nothing inside the database shows that, so its end is noted elsewhere."""
    noted = chain.head()
    tamper("audit_auditseal", "DELETE FROM audit_auditseal")
    tamper("policies_auditentry", "UPDATE policies_auditentry SET actor = 'bob' WHERE id = %s", sealed[0].pk)
    chain.seal(LATER)

    assert broken() == []
    assert broken(noted) == [(5, sealed[4].pk)]


def test_a_chain_whose_end_was_cut_off_is_shorter_than_what_was_noted(sealed):
    """The last entries are the ones that somebody wants to hide."""
    noted = chain.head()
    tamper("policies_auditentry", "DELETE FROM policies_auditentry WHERE id = %s", sealed[4].pk)
    tamper("audit_auditseal", "DELETE FROM audit_auditseal WHERE number = %s", 5)

    assert broken() == []
    assert broken(noted) == [(5, "")]


def test_the_command_seals_all_entries_of_before_an_upgrade(entry, monkeypatch):
    """They are more than the task seals in a run, and none of them was inserted by somebody."""
    monkeypatch.setattr(chain, "AT_ONCE", 2)
    monkeypatch.setattr(chain.seal, "__defaults__", (2,))
    for minute in range(5):
        entry(minute)

    call_command("verify_audit")

    assert chain.head().number == 5


def test_the_command_names_the_broken_row_and_fails(sealed):
    """A monitor needs only its status."""
    tamper("policies_auditentry", "UPDATE policies_auditentry SET actor = 'bob' WHERE id = %s", sealed[2].pk)
    out = io.StringIO()

    with pytest.raises(CommandError, match="1 of the rows are not as they were sealed"):
        call_command("verify_audit", stdout=out)

    assert (
        out.getvalue() == f"BROKEN {sealed[2].pk} (number 3): The entry, its seal or the seal before it was changed.\n"
    )


def test_the_command_prints_the_end_that_is_to_be_noted(sealed):
    """And accepts it later."""
    out = io.StringIO()
    call_command("verify_audit", stdout=out)
    end = out.getvalue().splitlines()[-1]

    assert end == str(chain.head())
    call_command("verify_audit", "--head", end, stdout=out)


@pytest.mark.parametrize("text", ["", "5", "x:" + "0" * 64, "5:abc", "5:" + "G" * 64])
def test_an_end_that_is_none_is_refused(db, text):
    """With its name and the rule."""
    with pytest.raises(CommandError, match=r"--head: must be NUMBER:DIGEST"):
        call_command("verify_audit", "--head", text)


def test_an_empty_audit_is_not_broken(db):
    """Of a new installation."""
    out = io.StringIO()
    call_command("verify_audit", stdout=out)

    assert "No audit entry is sealed yet" in out.getvalue()


def test_the_task_seals_what_a_change_has_written(store, actor):
    """The writer does not wait for it."""
    with change(actor=actor) as tx:
        tx.created(PolicyFactory())
    chain.seal(AuditEntry.objects.get().at + timedelta(seconds=10))

    assert AuditSeal.objects.get().entry_id == AuditEntry.objects.get().pk
    assert tasks.seal() == 0


def prune(day: str = "2026-11-25", reason: str = "kept for a year") -> str:
    out = io.StringIO()
    call_command("prune_audit", "--before", day, "--reason", reason, stdout=out)
    return out.getvalue()


def test_old_entries_are_pruned(sealed, entry):
    """The rest of the chain can still be checked, and the audit says what is missing and why."""
    kept = entry(24 * 60)
    chain.seal(LATER + timedelta(days=1))

    assert prune() == "5 entries deleted.\n"

    record = AuditEntry.objects.exclude(pk=kept.pk).get()
    assert (record.action, record.reason, record.after["number"]) == ("audit.prune", "kept for a year", 5)
    assert list(AuditSeal.objects.values_list("number", flat=True)) == [5, 6]
    assert broken() == []
    tamper("policies_auditentry", "UPDATE policies_auditentry SET actor = 'bob' WHERE id = %s", kept.pk)
    assert broken() == [(6, kept.pk)]


def test_a_beginning_that_was_cut_off_without_a_trace_is_found(sealed):
    """Only prune_audit leaves one."""
    tamper("policies_auditentry", "DELETE FROM policies_auditentry WHERE id < %s", sealed[2].pk)
    tamper("audit_auditseal", "DELETE FROM audit_auditseal WHERE number < %s", 2)

    assert broken()[0] == (1, "")


@pytest.mark.parametrize(
    ("day", "reason", "message"),
    [
        ("2999-01-01", "x", "--before: must not be in the future"),
        ("2026-11-25", " ", "--reason: must have 1 to 500 characters"),
        ("2026-11-25", "x" * 501, "--reason: must have 1 to 500 characters"),
        ("2026-11-25", "a\x1bb", "Nothing was deleted: Must have printable characters"),
        ("soon", "x", "--before: invalid"),
    ],
)
def test_a_wrong_order_prunes_nothing(sealed, day, reason, message):
    """Deleting cannot be undone."""
    with pytest.raises(CommandError, match=message):
        prune(day, reason)

    assert AuditEntry.objects.count() == 5


def test_a_broken_chain_is_not_pruned(sealed):
    """The proof would be lost."""
    tamper("policies_auditentry", "UPDATE policies_auditentry SET actor = 'bob' WHERE id = %s", sealed[2].pk)

    with pytest.raises(CommandError, match="the chain is broken"):
        prune()

    assert AuditEntry.objects.count() == 5


def test_nothing_old_is_nothing_to_prune(sealed):
    """And leaves no entry."""
    assert prune("2026-11-24") == "No sealed entry is older. Nothing was deleted.\n"
    assert AuditEntry.objects.count() == 5


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no users whom a trigger could hold back")
@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE policies_auditentry SET actor = 'bob' WHERE id = 'aud_000003'",
        "DELETE FROM policies_auditentry WHERE id = 'aud_000003'",
        "UPDATE audit_auditseal SET digest = 'x' WHERE number = 3",
        "DELETE FROM audit_auditseal WHERE number = 3",
        "UPDATE policies_auditentry SET actor = 'bob' WHERE id = 'aud_000290'",
        "DELETE FROM policies_auditentry WHERE id = 'aud_000290'",
        "TRUNCATE policies_auditentry",
        "TRUNCATE audit_auditseal, policies_auditentry CASCADE",
        # The setting allows to prune, and not to change.
        "SET LOCAL sluicegate.prune_audit = 'on'; UPDATE policies_auditentry SET actor = 'bob' WHERE id = 'aud_000003'",
        "SET LOCAL sluicegate.prune_audit = 'on'; TRUNCATE policies_auditentry",
    ],
)
def test_postgresql_refuses_to_change_the_audit(sealed, entry, sql):
    """Also to a program that does not use this code, and of an entry that is not sealed yet."""
    entry(290)
    refused = pytest.raises(DatabaseError, match="must not be changed or deleted")
    with refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)

    assert (AuditEntry.objects.count(), broken()) == (6, [])


def test_a_change_by_a_command_is_pruned_from_no_other_entry(sealed):
    """The entry of a prune is sealed as every other."""
    with change(actor=Actor("x", "command")) as tx:
        chain.prune(tx, LATER)
    chain.seal(AuditEntry.objects.get().at + timedelta(seconds=10))

    assert broken() == []
    assert AuditSeal.objects.order_by("-number").first().number == 6
