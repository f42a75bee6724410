"""
Build the call that publishes one revision to the store, and read its reply. No I/O.

The control plane decides what is published and when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from enforcement.lua import function
from enforcement.model.documents import SCHEMA
from enforcement.model.instants import DAY_SECONDS
from enforcement.model.keys import GLOBAL_TAG, Keys
from enforcement.model.strict_json import dumps

MAX_LOGGED_BYTES: Final = 262_144
"""Changes up to this size are written to the change log. After larger ones, readers load everything."""

MARK_TTL_MS: Final = 10_000
"""How long a store keeps the mark of a rebuild that is not prolonged. Others wait so long after one that was killed."""

WRITTEN, OVERTAKEN, LOST, TAKEN = 1, 0, -1, -2
"""
Replies of the store to a part of a rebuild: it is written, another state was published since, what was written before
is lost, or another rebuild is going on.
"""

_DAY_MS: Final = DAY_SECONDS * 1_000

Document = Mapping[str, Any]
StoreCall = tuple[str, list[str], list[str | int]]
"""Function, keys and arguments for ``FCALL``."""


@dataclass(frozen=True, slots=True)
class Publication:
    """
    One revision to publish.

    Args:
        revision: Its number, which is greater than the store's.
        now_us: When it is published, microseconds since the epoch. It is only shown to people.
        store_id: A random identity for a store without one, or with one of a lower epoch: see
            :class:`~enforcement.model.documents.StateName`. Empty: a store without an identity has lost its documents
            and refuses these changes.
        documents: Field of the hash of documents to document. None removes the field.
        tokens: Digest to document. None removes the token.
        resets: Counters that were reset, as objects with the ids of a "project" and a "token". Enforcers drop the
            denials that they remember for these.
        prices: The document of prices, alone in a tuple. None in its place removes it. Empty: it stays as it is.
        full: Whether readers must load everything again.
        replace_all: Whether *documents* are complete. All other fields of the hash are then removed.
    """

    revision: int
    now_us: int
    store_id: str
    documents: Mapping[str, Document | None] = field(default_factory=dict)
    tokens: Mapping[str, Document | None] = field(default_factory=dict)
    resets: Sequence[Mapping[str, str]] = ()
    prices: tuple[Document | None, ...] = ()
    full: bool = False
    replace_all: bool = False


def tags_of(documents: Iterable[str]) -> list[str]:
    """
    Return the hash tag of the global counters, and those of the projects among these documents.

    The store must have all counters of each tag before that. See :mod:`enforcement.store_calls.checkpoints`.
    """
    projects = (name.partition(":")[2] for name in documents if name.startswith("project:"))
    return [GLOBAL_TAG, *projects]


def publish_call(publication: Publication, keys: Keys) -> StoreCall:
    """
    Return the function, keys and arguments of the call that publishes a revision. It changes nothing if the store has a
    later one.

    Before it, the store must have all counters of the tags that :func:`tags_of` returns. Otherwise enforcers decide
    durable limits without the store.
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
    names = [keys.token(digest) for digest in publication.tokens]
    # They have a key of their own, as tokens do, so that processes that meter nothing neither read nor keep them.
    for prices in publication.prices:
        names.append(keys.prices)
        args += [_text(prices), ""]
    return function("publish"), [keys.documents, keys.log, *names], args


def write_tokens_call(
    tokens: Mapping[str, Document], state: tuple[str, str], mark: str, keys: Keys, *, begins: bool
) -> StoreCall:
    """
    Return the call that writes a part of the tokens of a rebuild, ahead of the publication that ends it.

    The store refuses it if another state was published after *state* was read, because these tokens may then be older
    than those that it has.

    Args:
        tokens: Digest to document.
        state: The store's revision and identity, each "" if it has none, read before the tokens were read from SQL.
        mark: A random string that names the rebuild. The store loses it with the tokens that were written before.
        begins: Whether this is the first part, which needs a store without a mark.
    """
    args: list[str | int] = [mark, MARK_TTL_MS, "1" if begins else "", *state]
    for token in tokens.values():
        args += [_text(token), _expiry(token)]
    return function("write_tokens"), [keys.documents, keys.rebuild, *map(keys.token, tokens)], args


def publish_whole_call(publication: Publication, mark: str, keys: Keys) -> StoreCall:
    """
    Return the call that ends a rebuild with a publication, whose tokens are only those that changed meanwhile.

    The store refuses it if the mark is gone, because it then lacks the tokens that were written before.
    """
    _, names, args = publish_call(publication, keys)
    return function("publish_whole"), [keys.rebuild, *names], [mark, *args]


def refused_by(reply: Sequence[int]) -> int | None:
    """
    Return None if the store accepted the revision, else the revision that it has, or 0 if it has none, or -1 if it has
    no mark of the rebuild.
    """
    return None if reply[0] == 1 else -1 if reply[0] == -1 else reply[1]


def _changes(publication: Publication) -> str:
    changes = {
        "schema": SCHEMA,
        "documents": {} if publication.full else dict(publication.documents),
        "tokens": sorted(publication.tokens),
        "resets": list(publication.resets),
        "full": publication.full or publication.replace_all,
        # Left out otherwise, because older enforcers load everything again after an entry with this field.
        **({"prices": True} if publication.prices else {}),
    }
    text = dumps(changes)
    if len(text) > MAX_LOGGED_BYTES:
        text = dumps({**changes, "documents": {}, "tokens": [], "full": True})
    return text


def _text(document: Document | None) -> str:
    return "" if document is None else dumps(document)


def _expiry(token: Document | None) -> str | int:
    """
    Return when the store deletes a token, in milliseconds since the epoch, a day after its end, or "" for never. During
    that day the token is reported as expired, not as unknown.
    """
    if token is None or token["expires_at_us"] is None:
        return ""
    return int(token["expires_at_us"]) // 1_000 + _DAY_MS
