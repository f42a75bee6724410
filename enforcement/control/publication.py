"""
How a state is published: what to send to the store for one revision, and what its answer means. No I/O.

The control plane decides what is published and when; this page only knows the store's side of it, beside the reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from enforcement.lua import function
from enforcement.model.documents import SCHEMA, dumps
from enforcement.model.instants import DAY_SECONDS
from enforcement.model.keys import GLOBAL_TAG, Keys

MAX_LOGGED_BYTES: Final = 262_144
"""Changes up to this size travel in the log; more of them are announced, and readers load everything."""

_DAY_MS: Final = DAY_SECONDS * 1_000

Document = Mapping[str, Any]
StoreCall = tuple[str, list[str], list[str | int]]
"""Function, keys, arguments: what ``FCALL`` takes."""


@dataclass(frozen=True, slots=True)
class Publication:
    """
    One revision.

    Args:
        revision: Its number, greater than the store's.
        now_us: When, microseconds since the epoch; told to people, decides nothing.
        store_id: Identity for a store that has none yet, random text. Empty: such a store lost what these documents are
            changes of, and refuses them.
        documents: Field of the documents' hash to document, None removes it.
        tokens: Digest to document, None removes it.
        resets: Counters that were reset, for enforcers that remember denials: objects of "project" and "token" ids.
        full: Readers shall load everything anew.
        replace_all: *documents* are all there are; whatever else the hash holds is removed.
    """

    revision: int
    now_us: int
    store_id: str
    documents: Mapping[str, Document | None] = field(default_factory=dict)
    tokens: Mapping[str, Document | None] = field(default_factory=dict)
    resets: Sequence[Mapping[str, str]] = ()
    full: bool = False
    replace_all: bool = False


def tags_of(documents: Iterable[str]) -> list[str]:
    """
    Return the hash tags of the counters that these fields of the documents' hash let begin.

    Each must be whole in the store before they are published: see :mod:`enforcement.control.checkpoints`.
    """
    projects = (name.partition(":")[2] for name in documents if name.startswith("project:"))
    return [GLOBAL_TAG, *projects]


def publish_call(publication: Publication, keys: Keys) -> StoreCall:
    """
    Return the one call that publishes it, or leaves a store that knows a later revision as it is.

    Whoever calls it has made the store whole for :func:`tags_of` the documents: durable limits are decided without it
    where it is not.
    """
    documents = {name: _text(document) for name, document in publication.documents.items()}
    args: list[str | int] = [
        publication.revision,
        publication.now_us,
        publication.store_id,
        _changes(publication),
        "1" if publication.replace_all else "",
        len(documents),
    ]
    for name, text in documents.items():
        args += [name, text]
    for token in publication.tokens.values():
        args += [_text(token), _expiry(token)]
    tokens = [keys.token(digest) for digest in publication.tokens]
    return function("publish"), [keys.documents, keys.log, *tokens], args


def refused_by(reply: Sequence[int]) -> int | None:
    """Return the revision that the store has instead, a later one or 0 for none, or None if it took this one."""
    return None if reply[0] == 1 else reply[1]


def _changes(publication: Publication) -> str:
    changes = {
        "schema": SCHEMA,
        "documents": {} if publication.full else dict(publication.documents),
        "tokens": sorted(publication.tokens),
        "resets": list(publication.resets),
        "full": publication.full or publication.replace_all,
    }
    text = dumps(changes)
    if len(text) > MAX_LOGGED_BYTES:
        text = dumps({**changes, "documents": {}, "tokens": [], "full": True})
    return text


def _text(document: Document | None) -> str:
    return "" if document is None else dumps(document)


def _expiry(token: Document | None) -> str | int:
    """A token stays a day longer than it is valid, so that it can be called expired rather than unknown."""
    if token is None or token["expires_at_us"] is None:
        return ""
    return int(token["expires_at_us"]) // 1_000 + _DAY_MS
