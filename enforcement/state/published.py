"""
What an enforcer knows: the documents at one revision, and the tokens it met. One thread writes, readers take no lock.

A document that breaks a rule changes nothing: its last good version stays, and whoever loads is told.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from enforcement.model.documents import (
    SCHEMA,
    InvalidDocument,
    Project,
    Token,
    dumps,
    parse_global,
    parse_policy,
    parse_project,
    parse_token,
)
from enforcement.model.limits import MAX_NUMBER, Policy

if TYPE_CHECKING:
    from enforcement.state.usage import TokenUsage

MAX_TOKENS: Final = 10_000
MAX_UNKNOWN: Final = 10_000
MAX_DERIVED: Final = 2_000
UNKNOWN_SECONDS: Final = 5.0
"""How long "there is no such token" is believed, for one that is made in a moment nobody announced."""
MAX_CHANGES_LENGTH: Final = 524_288
"""A log entry beyond twice what a publisher writes is not read."""

_SECOND_CHANCES: Final = 16

Text = str | bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    All documents but the tokens, as published with one revision.

    A policy or project that is referred to and stands in no mapping could not be read: nothing may be admitted by
    taking it for absent.
    """

    revision: int = 0
    store_id: str = ""
    policies: Mapping[str, Policy] = field(default_factory=dict)
    projects: Mapping[str, Project] = field(default_factory=dict)
    global_policy: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentProblem:
    """A document that was refused; ``whole``: all others with it."""

    document: str
    reason: str
    whole: bool = False


class TokenEntry:
    """
    What is known of one token.

    Attributes:
        token: Its document; None: unknown, or unreadable if there is a problem.
        problem: Why the document cannot be read; empty otherwise.
        generation: The state of the documents that ``plan`` was compiled for; -1: none yet. The limiter's to set.
        plan: Whatever the limiter compiled.
        usage: Where its decisions are counted.
    """

    __slots__ = ("generation", "plan", "problem", "text", "token", "until", "usage", "used")

    def __init__(self, token: Token | None, problem: str = "", text: str = "") -> None:
        self.token = token
        self.problem = problem
        self.text = text
        self.generation = -1
        self.plan: Any = None
        self.usage: TokenUsage | None = None
        self.used = False
        self.until = 0.0


class DerivedPlans:
    """
    What a limiter found out about one generation of the documents; thrown away with it, so nobody has to ask its age.

    It is the one place that holds credentials as clients send them, in this process' memory alone, and few of them: to
    hash one takes longer than all else that a leased decision does.

    Attributes:
        plans: A token's plan, where that depends on nothing but the documents.
        headers: The same by the bytes of an ``Authorization`` field.
    """

    __slots__ = ("headers", "plans")

    def __init__(self) -> None:
        self.plans: dict[str, Any] = {}
        self.headers: dict[bytes, Any] = {}

    def keep(self, name: Any, plan: Any, *, header: bool = False) -> None:
        """Keep a plan by its token or header."""
        kept: dict[Any, Any] = self.headers if header else self.plans
        if len(kept) >= MAX_DERIVED:
            kept.clear()
        kept[name] = plan


class PublishedState:
    """
    The present snapshot and the tokens met lately.

    ``load``, ``apply`` and ``forget`` belong to one thread; everything else may be called from any.

    Args:
        clock: Monotonic seconds.

    Attributes:
        current: The snapshot, replaced as a whole.
        generation: +1 whenever the snapshot or a token changed. Read it before ``current``: what is compiled from both
            is then at worst compiled once more.
        derived: What was found out about the present generation. Take it before anything that goes into it.
        loaded: Whether there ever was a good state.
        kept: +1 whenever the documents of a token were kept; with ``generation``, whether there is anything to save.
        disk_failures: How often the copy on disk could not be written or used.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.current = Snapshot()
        self.generation = 0
        self.derived = DerivedPlans()
        self.loaded = False
        self.kept = 0
        self.disk_failures = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._parsed: dict[str, tuple[str, Any]] = {}
        # Not dicts, which find their first entry slowly when many before it were deleted.
        self._tokens: OrderedDict[str, TokenEntry] = OrderedDict()
        self._unknown: OrderedDict[str, TokenEntry] = OrderedDict()
        # Which tokens changed lately, and when: a document that was on its way meanwhile must not be kept.
        self._changed: dict[str, int] = {}
        self._all_changed_at = 0

    # Documents.

    def load(
        self, raw: Mapping[str, Text] | Mapping[bytes, Text], tokens: Mapping[str, Text | None] | None = None
    ) -> list[DocumentProblem]:
        """
        Take over a complete state.

        Args:
            raw: All fields of the documents' hash.
            tokens: Digest to document of the tokens that ``cached()`` named, read after *raw*, None if gone; any other
                token is forgotten. Left out: what is known of tokens stays.
        Returns:
            What was refused. Such a document keeps its last good version. Without a readable revision and identity,
            or without knowing whether anything falls on every request, nothing at all is taken.
        """
        texts = {_text(name): _text(value) for name, value in raw.items()}
        try:
            revision, store_id = _revision(texts.pop("revision", "")), _identity(texts.pop("store_id", ""))
        except InvalidDocument as exc:
            return [DocumentProblem("revision", str(exc), whole=True)]
        texts.pop("published_at_us", None)
        parsed, problems = self._parse(texts)
        if any(problem.whole for problem in problems):
            return problems
        problems += self._take(revision, store_id, parsed, tokens)
        return problems

    def apply(self, revision: int, changes_json: Text) -> bool:
        """
        Take over one entry of the change log.

        Args:
            revision: The number in the entry's id.
            changes_json: Its ``changes``, canonical JSON.
        Returns:
            False: it cannot be applied here, a complete load is needed. Nothing was changed then. An entry that is
            known already is no reason for that.
        """
        if not self.loaded or revision > self.current.revision + 1:
            return False
        if revision <= self.current.revision:
            return True
        try:
            changes = _Changes.read(_text(changes_json))
            parsed = dict(self._parsed)
            for name, text in changes.documents.items():
                if text is None:
                    parsed.pop(name, None)
                else:
                    parsed[name] = (text, _parse(name, text))
        except InvalidDocument:
            return False
        self._take(revision, self.current.store_id, parsed, None, changes.tokens)
        return True

    def _parse(self, texts: Mapping[str, str]) -> tuple[dict[str, tuple[str, Any]], list[DocumentProblem]]:
        parsed: dict[str, tuple[str, Any]] = {}
        problems = []
        for name, text in texts.items():
            known = self._parsed.get(name)
            try:
                parsed[name] = known if known and known[0] == text else (text, _parse(name, text))
            except InvalidDocument as exc:
                if known:
                    parsed[name] = known
                problems.append(DocumentProblem(name, str(exc), whole=name == "global" and not known))
        return parsed, problems

    def _take(
        self,
        revision: int,
        store_id: str,
        parsed: dict[str, tuple[str, Any]],
        tokens: Mapping[str, Text | None] | None,
        changed: Sequence[str] = (),
    ) -> list[DocumentProblem]:
        """Replace the state; the generation comes last, for whoever sees it shall see everything else."""
        entries, problems = self._reread(tokens) if tokens is not None else (None, [])
        with self._lock:
            generation = self.generation + 1
            if entries is not None:
                self._tokens, self._unknown, self._changed = entries, OrderedDict(), {}
                self._all_changed_at = generation
            self._drop(changed, generation)
            self._parsed = parsed
            self.current = _snapshot(revision, store_id, parsed)
            self.loaded = True
            self.generation = generation
            self.derived = DerivedPlans()
        return problems

    # Tokens.

    def find(self, digest: str) -> TokenEntry | None:
        """Return what is known of a token, or None: ask the store, and ``remember`` its answer."""
        entry = self._tokens.get(digest)
        if entry is not None:
            entry.used = True
            return entry
        entry = self._unknown.get(digest)
        if entry is not None and self._clock() < entry.until:
            return entry
        return None

    def remember(self, digest: str, text: Text | None, asked_at: int) -> TokenEntry:
        """
        Keep the store's answer.

        Args:
            digest: SHA-256 of the token, in hexadecimal.
            text: The document; None: there is none.
            asked_at: ``generation`` as it was before the store was asked. If the token changed since, the answer may be
                older than the change: it serves this once and is not kept.
        """
        entry = _entry(text)
        with self._lock:
            if max(self._all_changed_at, self._changed.get(digest, 0)) > asked_at:
                return entry
            known = self._tokens.get(digest)
            if known is not None and known.text == entry.text:
                return known
            self._keep(digest, entry)
        return entry

    def forget(self, digests: Sequence[str]) -> None:
        """Forget tokens whose documents changed."""
        with self._lock:
            self._drop(digests, self.generation + 1)
            self.generation += 1
            self.derived = DerivedPlans()

    def rest(self) -> None:
        """Forget what was derived: nobody follows the documents from here on."""
        self.derived = DerivedPlans()

    def cached(self) -> list[str]:
        """Return the digests of all known tokens."""
        return list(self._tokens)

    def after_fork(self) -> None:
        """Make it usable in a child: another thread of the parent may have held the lock, and plans hold its leases."""
        self._lock = threading.Lock()
        self.generation += 1
        self.derived = DerivedPlans()

    def _keep(self, digest: str, entry: TokenEntry) -> None:
        self._tokens.pop(digest, None)
        self._unknown.pop(digest, None)
        if entry.token is not None:
            self._make_room()
            self._tokens[digest] = entry
            self.kept += 1
            return
        entry.until = self._clock() + UNKNOWN_SECONDS
        if len(self._unknown) >= MAX_UNKNOWN:
            self._unknown.popitem(last=False)
        self._unknown[digest] = entry

    def _make_room(self) -> None:
        """
        Let go of the token that was not used for longest, or nearly: one that was used gets a second chance.

        A strict order would make every reader write to it; here a reader sets a flag. Chances are bounded, so no
        request pays for all.
        """
        for _ in range(_SECOND_CHANCES):
            if len(self._tokens) < MAX_TOKENS:
                return
            oldest, entry = self._tokens.popitem(last=False)
            if entry.used:
                entry.used = False
                self._tokens[oldest] = entry
                self.derived = DerivedPlans()  # who finds its plan there does not say that it is used
        while len(self._tokens) >= MAX_TOKENS:
            self._tokens.popitem(last=False)

    def _drop(self, digests: Sequence[str], generation: int) -> None:
        for digest in digests:
            self._tokens.pop(digest, None)
            self._unknown.pop(digest, None)
            self._changed[digest] = generation
        if len(self._changed) > MAX_TOKENS:
            self._changed, self._all_changed_at = {}, generation

    def _reread(self, tokens: Mapping[str, Text | None]) -> tuple[OrderedDict[str, TokenEntry], list[DocumentProblem]]:
        entries: OrderedDict[str, TokenEntry] = OrderedDict()
        problems = []
        for digest, text in tokens.items():
            known = self._tokens.get(digest)
            if known is not None and text is not None and known.text == _text(text):
                entries[digest] = known
                continue
            entry = _entry(text)
            if entry.problem:
                problems.append(DocumentProblem(f"token:{digest}", entry.problem))
                entry = known or entry
            if entry.token is not None:
                entries[digest] = entry
        return entries, problems

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield name and text of everything a restart needs: revision, identity, documents, tokens."""
        with self._lock:
            current, parsed, tokens = self.current, self._parsed, self._tokens.copy()
        yield "revision", str(current.revision)
        yield "store_id", current.store_id
        for name, (text, _) in parsed.items():
            yield name, text
        for digest, entry in tokens.items():
            yield f"token:{digest}", entry.text


@dataclass(frozen=True, slots=True)
class _Changes:
    """A log entry, read."""

    documents: Mapping[str, str | None]
    tokens: Sequence[str]

    @classmethod
    def read(cls, text: str) -> _Changes:
        """
        Read the entry strictly. Raises InvalidDocument, also for one that says that everything is to be loaded.

        Canonical JSON comes out as it went in. What does not (a key that stands twice, NaN, blanks) was not written by
        a publisher, and every document in it goes through the reader of documents once more.
        """
        if len(text) > MAX_CHANGES_LENGTH:
            raise InvalidDocument(f"it has {len(text)} characters")
        try:
            value = json.loads(text)
            if not isinstance(value, dict) or dumps(value) != text:
                raise InvalidDocument("it is not an object in canonical JSON")
        except (ValueError, RecursionError) as exc:
            raise InvalidDocument(f"it is not JSON: {exc}") from exc
        if set(value) != {"schema", "documents", "tokens", "resets", "full"}:
            raise InvalidDocument("it has not the fields of an entry")
        if type(value["schema"]) is not int or value["schema"] != SCHEMA:
            raise InvalidDocument("schema: unknown")
        documents, tokens = value["documents"], value["tokens"]
        if value["full"] is not False or not isinstance(documents, dict) or not isinstance(tokens, list):
            raise InvalidDocument("full: everything is to be loaded")
        if any(not isinstance(digest, str) for digest in tokens):
            raise InvalidDocument("tokens: must be a list of texts")
        return cls({name: None if item is None else _dumped(item) for name, item in documents.items()}, tokens)


def _parse(name: str, text: str) -> Any:
    kind, _, ident = name.partition(":")
    if name == "global":
        return parse_global(text)
    if kind == "policy":
        value: Policy | Project = parse_policy(text)
    elif kind == "project":
        value = parse_project(text)
    else:
        raise InvalidDocument("no document of this name is known")
    if value.id != ident:
        raise InvalidDocument("id: must be the one under which it is published")
    return value


def _entry(text: Text | None) -> TokenEntry:
    if text is None:
        return TokenEntry(None)
    text = _text(text)
    try:
        return TokenEntry(parse_token(text), text=text)
    except InvalidDocument as exc:
        return TokenEntry(None, str(exc))


def _snapshot(revision: int, store_id: str, parsed: Mapping[str, tuple[str, Any]]) -> Snapshot:
    policies = {value.id: value for _, value in parsed.values() if isinstance(value, Policy)}
    projects = {value.id: value for _, value in parsed.values() if isinstance(value, Project)}
    _, global_policy = parsed.get("global", ("", None))
    return Snapshot(revision, store_id, MappingProxyType(policies), MappingProxyType(projects), global_policy)


def _revision(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and 0 < int(text) <= MAX_NUMBER):
        raise InvalidDocument(f"revision: must be a whole number from 1 to {MAX_NUMBER}, not {text[:40]!r}")
    return int(text)


def _identity(text: str) -> str:
    if not (0 < len(text) <= 64 and text.isascii() and text.isprintable()):
        raise InvalidDocument("store_id: must be 1 to 64 printable ASCII characters")
    return text


def _dumped(item: object) -> str:
    if not isinstance(item, dict):
        raise InvalidDocument("documents: must hold objects")
    return dumps(item)


def _text(value: Text) -> str:
    """Bytes that are no UTF-8 become halves of surrogate pairs, which every reader of documents refuses."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


__all__ = ["DocumentProblem", "PublishedState", "Snapshot", "TokenEntry"]
