"""The last good documents on disk: whole or ignored, private, and never a reason to stop."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from enforcement.failover import private_file
from enforcement.model.strict_json import dumps
from enforcement.state.disk import restore, save
from enforcement.state.published import PublishedState
from tests.enforcement.published import DIGEST, changes, policy, state, token


@pytest.fixture
def documents() -> PublishedState:
    known = PublishedState()
    known.load(state(5))
    return known


def test_saved_documents_are_restored(documents: PublishedState, tmp_path: Path) -> None:
    """A process that starts without a store obeys what the one before it obeyed, tokens included."""
    documents.remember(DIGEST, dumps(token()), documents.generation)
    save(tmp_path / "state" / "documents", documents)
    later = PublishedState()

    assert restore(tmp_path / "state" / "documents", later)

    assert later.current == documents.current
    assert later.find(DIGEST).token == documents.find(DIGEST).token
    assert later.loaded


def test_the_key_of_decision_ids_is_kept_with_the_documents(documents: PublishedState, tmp_path: Path) -> None:
    """Ids made in an outage can then be read."""
    documents.decision_key = "0123456789abcdef"
    save(tmp_path / "documents", documents)
    later = PublishedState()
    restore(tmp_path / "documents", later)

    assert later.decision_key == "0123456789abcdef"


def test_saved_documents_are_private_and_alone(documents: PublishedState, tmp_path: Path) -> None:
    """Only the owner may read the file, and no temporary one stays behind."""
    save(tmp_path / "documents", documents)

    assert stat.S_IMODE((tmp_path / "documents").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["documents"]


@pytest.mark.parametrize("at", [0, 30, 200, -3])
def test_altered_file_is_ignored(documents: PublishedState, tmp_path: Path, caplog, at: int) -> None:
    """One bit is enough to distrust all of it; one line says so."""
    path = tmp_path / "documents"
    save(path, documents)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)

    assert not restore(path, PublishedState())
    assert len(caplog.records) == 1


@pytest.mark.parametrize("length", [0, 10, 21, 22, 300, -1])
def test_truncated_file_is_ignored(documents: PublishedState, tmp_path: Path, length: int) -> None:
    """However much of it is missing, a file that is not whole is none."""
    path = tmp_path / "documents"
    save(path, documents)
    path.write_bytes(path.read_bytes()[:length])
    later = PublishedState()

    assert not restore(path, later)
    assert (later.loaded, later.disk_failures) == (False, 1)


def test_file_of_another_version_is_ignored(documents: PublishedState, tmp_path: Path, caplog) -> None:
    """A later version may mean something else by the same words."""
    path = tmp_path / "documents"
    save(path, documents)
    path.write_bytes(path.read_bytes().replace(b"sluicegate-snapshot 1", b"sluicegate-snapshot 2"))

    assert not restore(path, PublishedState())
    assert "the file must be written by this version" in caplog.text


def test_file_that_others_may_write_to_is_ignored(documents: PublishedState, tmp_path: Path) -> None:
    """Whoever may write the file could lift every limit."""
    path = tmp_path / "documents"
    save(path, documents)
    path.chmod(0o666)

    assert not restore(path, PublishedState())


def test_a_later_state_is_not_replaced_by_an_earlier_one(documents: PublishedState, tmp_path: Path) -> None:
    """Processes may share a folder, and one that was cut off ends last. What it did not hear of stays revoked."""
    path, ahead = tmp_path / "documents", PublishedState()
    for revision, store_id in ((6, "store-1"), (4, "store-1.1")):
        ahead.load(state(revision, store_id=store_id))
        assert save(path, ahead)
        assert save(path, documents)

        found = PublishedState()
        assert restore(path, found)
        assert found.current.name == ahead.current.name


@pytest.mark.parametrize(
    "spoil", [lambda text: text[:-9], lambda text: b"sluicegate-snapshot 1\n[1]\n", lambda text: b""]
)
def test_a_later_state_that_cannot_be_read_is_replaced(documents: PublishedState, tmp_path: Path, spoil) -> None:
    """It protects nobody, as nobody could start from it."""
    path, ahead = tmp_path / "documents", PublishedState()
    ahead.load(state(6))
    save(path, ahead)
    path.write_bytes(spoil(path.read_bytes()))

    assert save(path, documents)
    assert restore(path, PublishedState())


def test_missing_file_is_no_trouble(tmp_path: Path, caplog) -> None:
    """The first start of all has no copy; nobody needs to read about it."""
    assert not restore(tmp_path / "documents", PublishedState())
    assert caplog.records == []


def test_disk_trouble_is_said_once_and_counted(documents: PublishedState, tmp_path: Path, caplog) -> None:
    """A disk that cannot be written to stops nothing."""
    (tmp_path / "file").write_text("")

    for _ in range(3):
        save(tmp_path / "file" / "documents", documents)

    assert documents.disk_failures == 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_file_is_replaced_only_by_a_whole_one(documents: PublishedState, tmp_path: Path, monkeypatch) -> None:
    """A disk that fills up while the new copy is written leaves the old one in place."""
    path = tmp_path / "documents"
    save(path, documents)
    documents.apply(6, changes(documents={"policy:pol_1": policy(1)}))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(private_file.os, "fsync", full)
    save(path, documents)

    later = PublishedState()
    assert restore(path, later)
    assert later.current.revision == 5
    assert os.listdir(tmp_path) == ["documents"]
