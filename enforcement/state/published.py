"""
Hold the published documents that a process obeys, and the tokens that it has met.

One thread writes, and readers take no lock. A document that breaks a rule changes nothing: its last good version stays
in use, and the caller that loads it gets the reason.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from enforcement.model.checks import is_integer, shown
from enforcement.model.documents import (
    SCHEMA,
    InvalidDocument,
    Policy,
    ProjectDocument,
    StateName,
    epoch_of,
    parse_global,
    parse_identity,
    parse_intakes,
    parse_policy,
    parse_project,
    parse_revision,
)
from enforcement.model.strict_json import InvalidJSON, dumps, loads_canonical
from enforcement.state.arrivals import Arrivals
from enforcement.state.token_cache import DocumentProblem, Text, TokenCache, TokenEntry, as_string, read_entry
from enforcement.store_calls.emergency import NO_EMERGENCY, Emergency, parse_emergency

if TYPE_CHECKING:
    from enforcement.state.live_plan import LivePlan

NameT = TypeVar("NameT")
KeptT = TypeVar("KeptT")

MAX_DERIVED: Final = 2_000
MAX_MESSAGE_KEPT: Final = 1_024
"""Bytes of a message that is kept. All of them take at most as many kilobytes as there are kept plans."""
MAX_CHANGES_LENGTH: Final = 524_288
"""Characters of a change log entry that is read. A publisher writes at most half as many."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    All documents except those of tokens, as published with one revision.

    A policy or project that is referred to but is not contained here could not be read. It must not be treated as
    absent, because then its limits would not apply.
    """

    revision: int = 0
    store_id: str = ""
    policies: Mapping[str, Policy] = field(default_factory=dict)
    projects: Mapping[str, ProjectDocument] = field(default_factory=dict)
    global_policy: str | None = None
    emergency: Emergency = NO_EMERGENCY
    intakes: frozenset[str] = frozenset()

    @property
    def name(self) -> StateName:
        """The epoch and the revision."""
        return StateName(epoch_of(self.store_id), self.revision)


class DerivedPlans:
    """
    Plans made from one generation of the documents. They are dropped with it, so their age is never checked.

    This is the only place that holds credentials as clients send them, a few of them, in the memory of this process.
    Keys by SHA-256 would cost 0.37 us a look-up, where a whole decision from a lease takes 0.65 us.

    Attributes:
        plans: Plans by token, if they depend only on the documents.
        headers: The same plans by the value of an ``Authorization`` header.
        metered: By the same value, those with limits that need a meter.
        messages: By the message in which a proxy asks, the same plans, or None for one that depends on attributes, each
            with what was read from the message.
    """

    __slots__ = ("headers", "messages", "metered", "plans")

    def __init__(self) -> None:
        self.plans: dict[object, LivePlan] = {}
        self.headers: dict[bytes, LivePlan] = {}
        self.metered: dict[bytes, LivePlan] = {}
        self.messages: dict[bytes, tuple[LivePlan | None, Any]] = {}

    def keep(self, token: object, plan: LivePlan) -> None:
        """Add a plan under its token, after clearing a cache that is full."""
        _keep(self.plans, token, plan)

    def keep_header(self, header: bytes, plan: LivePlan) -> None:
        """Add a plan under its header, after clearing a cache that is full."""
        _keep(self.headers, header, plan)

    def keep_metered(self, header: bytes, plan: LivePlan) -> None:
        """Add a plan with limits that need a meter, after clearing a cache that is full."""
        _keep(self.metered, header, plan)

    def keep_message(self, message: bytes, row: tuple[LivePlan | None, object]) -> None:
        """Add what was read from a short message, after clearing a cache that is full."""
        if len(message) <= MAX_MESSAGE_KEPT:
            _keep(self.messages, message, row)


def _keep(cache: dict[NameT, KeptT], name: NameT, value: KeptT) -> None:
    if len(cache) >= MAX_DERIVED:
        cache.clear()
    cache[name] = value


class PublishedState:
    """
    The current snapshot and the tokens that were met lately.

    ``load`` and ``apply`` are for one thread. Any thread may call everything else.

    Args:
        clock: Returns monotonic seconds.

    Attributes:
        current: The snapshot. It is replaced as a whole.
        generation: Increases whenever the snapshot or a token changes. Read it before ``current``: a plan that is made
            from both is then at worst made once more.
        derived: Plans of the current generation. Read it before anything that a plan is made from.
        loaded: Whether a complete state was ever loaded.
        arrivals: Learns of each state.
        find: Returns what is known of the token with a digest. None: ask the store, and pass its reply to
            :meth:`remember`.
        decision_key: The secret by which decision ids are made, or an empty string if the store has none.
        disk_failures: How often the copy on disk could not be written or used.
        price_changes: Increases with each publication that may have changed the prices.
        lacks_global: Whether the account of the store may not use the counters of the global policy.
        on_change: Called when the state was replaced.
        price_revision: The revision of the prices in use. None: this process uses no prices.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.current = Snapshot()
        self.generation = 0
        self.derived = DerivedPlans()
        self.loaded = False
        self.decision_key = ""
        self.disk_failures = 0
        self.price_changes = 0
        self.lacks_global = False
        self.price_revision: int | None = None
        self.arrivals = Arrivals()
        self.on_change: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._parsed: dict[str, tuple[str, object]] = {}
        self._tokens = TokenCache(clock, self.rest)
        self.find = self._tokens.find

    @property
    def kept(self) -> int:
        """How often the document of a token was added. It changes, as ``generation`` does, if there is more to save."""
        return self._tokens.kept

    def load(
        self, raw: Mapping[str, Text] | Mapping[bytes, Text], tokens: Mapping[str, Text | None] | None = None
    ) -> list[DocumentProblem]:
        """
        Replace the state by a complete one, unless that is older or invalid as a whole, and return the problems of
        refused documents.

        Args:
            raw: All fields of the hash of documents.
            tokens: Digest to document of the tokens that :meth:`cached` has named, read after *raw*. A document is None
                if it is gone. All other tokens are forgotten. None: the known tokens stay.
        Returns:
            The documents that were refused. Each of them keeps its last good version. If the revision, the identity or
            the first version of the global document cannot be read, or the state is older than the present one, nothing
            is replaced.
        """
        texts = {as_string(name): as_string(value) for name, value in raw.items()}
        try:
            revision, store_id = parse_revision(texts.pop("revision", "")), parse_identity(texts.pop("store_id", ""))
        except InvalidDocument as exc:
            return [DocumentProblem("revision", str(exc), whole=True)]
        given, present = StateName(epoch_of(store_id), revision), self.current.name
        if given < present:
            return [DocumentProblem("revision", f"must not be before {present}, got {given}", whole=True)]
        texts.pop("published_at_us", None)
        # Only the copy on disk has it among the documents. In the store it has a key of its own.
        self.decision_key = texts.pop("decision_key", self.decision_key)
        parsed, problems = self._parse(texts)
        if any(problem.whole for problem in problems):
            return problems
        problems += self._replace(revision, store_id, parsed, tokens)
        self.price_changes += 1
        return problems

    def apply(self, revision: int, changes_json: Text, store_id: Text | None = None) -> bool:
        """
        Apply an entry of the change log that is not known yet, and return False if a complete load is needed, else
        True.

        Args:
            revision: The number in the id of the entry.
            changes_json: Its ``changes``, as canonical JSON.
            store_id: The identity of the store that it was published to. None if the entry does not say that.
        Returns:
            Whether the state now contains the changes, which also holds for an entry that was applied before. False:
            nothing was changed, and a complete load is needed.
        """
        if not self.loaded or revision > self.current.revision + 1:
            return False
        if store_id is not None and as_string(store_id) != self.current.store_id:
            return False  # its number belongs to another history
        if revision <= self.current.revision:
            return True
        try:
            documents, tokens, with_prices = _read_changes(as_string(changes_json))
            parsed = dict(self._parsed)
            for name, text in documents.items():
                if text is None:
                    parsed.pop(name, None)
                else:
                    parsed[name] = (text, _parse(name, text))
        except InvalidDocument:
            return False
        self._replace(revision, self.current.store_id, parsed, None, tokens)
        self.price_changes += with_prices
        return True

    def is_ahead_of(self, revision: Text | None, store_id: Text | None) -> bool:
        """
        Return whether a store with these two fields is behind this process.

        Such a store has lost its documents or was set back. What it says of a token may be outdated.
        """
        found = name_of(revision, store_id)
        return found is None or found < self.current.name

    def remember(self, digest: str, text: Text | None, asked_at: int) -> TokenEntry:
        """
        Keep what the store replied about a token unless it may be outdated, and return the token's entry.

        Args:
            digest: SHA-256 of the token, in hexadecimal.
            text: The document. None: there is none.
            asked_at: The ``generation`` before the store was asked. If the token has changed since, the reply may be
                outdated. It is then returned but not kept.
        """
        entry = read_entry(text)
        with self._lock:
            return self._tokens.add(digest, entry, asked_at)

    def rest(self) -> None:
        """Drop all plans, for example because nothing follows the documents from now on."""
        self.derived = DerivedPlans()

    def entries(self) -> list[TokenEntry]:
        """Return the entries of all known tokens in a new list."""
        with self._lock:
            return self._tokens.entries()

    def cached(self) -> list[str]:
        """Return a list of the digests of all known tokens."""
        return self._tokens.digests()

    def after_fork(self) -> None:
        """
        Replace the lock and drop all plans in a child process.

        A thread of the parent may have held the lock, and plans contain leases of the parent.
        """
        self._lock = threading.Lock()
        self.arrivals.after_fork()
        self.outdate()

    def outdate(self) -> None:
        """Have all plans made again, as after a publication, because the time that they were made by was wrong."""
        with self._lock:
            self.generation += 1
            self.derived = DerivedPlans()

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield the name and text of everything that a restart needs, from the revision to the tokens."""
        with self._lock:
            current, parsed, tokens = self.current, self._parsed, self._tokens.known()
        yield "revision", str(current.revision)
        yield "store_id", current.store_id
        if self.decision_key:
            yield "decision_key", self.decision_key
        for name, (text, _) in parsed.items():
            yield name, text
        for digest, entry in tokens.items():
            yield f"token:{digest}", entry.text

    def _parse(self, texts: Mapping[str, str]) -> tuple[dict[str, tuple[str, object]], list[DocumentProblem]]:
        parsed: dict[str, tuple[str, object]] = {}
        problems = []
        for name, text in texts.items():
            known = self._parsed.get(name)
            try:
                parsed[name] = known if known and known[0] == text else (text, _parse(name, text))
            except InvalidDocument as exc:
                if known:
                    parsed[name] = known
                problems.append(DocumentProblem(name, str(exc), whole=name == "global" and not known))
        if "global" not in texts and "global" in self._parsed:
            # A publisher that has written it writes it always, also if no policy is global. A document that got lost
            # does not lift the global limits.
            parsed["global"] = self._parsed["global"]
            problems.append(DocumentProblem("global", "is missing"))
        return parsed, problems

    def _replace(
        self,
        revision: int,
        store_id: str,
        parsed: dict[str, tuple[str, object]],
        tokens: Mapping[str, Text | None] | None,
        changed: Sequence[str] = (),
    ) -> list[DocumentProblem]:
        """
        Replace the state, and return the problems of tokens' documents that cannot be read. The generation comes last,
        because a reader that sees it must see everything else.
        """
        entries, problems = self._tokens.read(tokens) if tokens is not None else (None, [])
        with self._lock:
            generation = self.generation + 1
            if entries is not None:
                self._tokens.replace(entries, generation)
            self._tokens.drop(changed, generation)
            self._parsed = parsed
            self.current = _snapshot(revision, store_id, parsed)
            self.loaded = True
            self.generation = generation
            self.derived = DerivedPlans()
        self.on_change()
        self.arrivals.reached(self.current.name)
        return problems


def _read_changes(text: str) -> tuple[Mapping[str, str | None], Sequence[str], bool]:
    """
    Return the documents of a change log entry by name, None if removed, the digests of tokens that changed, and whether
    the prices changed.

    Raises:
        InvalidDocument: A publisher cannot have written the entry, or it requires a complete load.
    """
    try:
        value = loads_canonical(text, max_length=MAX_CHANGES_LENGTH)
    except InvalidJSON as exc:
        raise InvalidDocument(str(exc)) from exc
    with_prices = value.pop("prices", False)
    if set(value) != {"schema", "documents", "tokens", "resets", "full"}:
        raise InvalidDocument("must have the fields of a change log entry")
    if not is_integer(value["schema"], SCHEMA, SCHEMA):
        raise InvalidDocument(f"schema: must be {SCHEMA}, got {shown(value['schema'])}")
    documents, tokens = value["documents"], value["tokens"]
    if value["full"] is not False or not isinstance(documents, dict) or not isinstance(tokens, list):
        raise InvalidDocument("full: requires a complete load")
    if any(not isinstance(digest, str) for digest in tokens):
        raise InvalidDocument("tokens: must be a list of strings")
    if not isinstance(with_prices, bool):
        raise InvalidDocument("prices: must be true or false")
    texts = {name: None if item is None else _dumped(item) for name, item in documents.items()}
    return texts, tokens, with_prices


def _parse(name: str, text: str) -> object:
    kind, _, ident = name.partition(":")
    if name == "global":
        return parse_global(text)
    if name == "emergency":
        return parse_emergency(text)
    if name == "intakes":
        return parse_intakes(text)
    if kind == "policy":
        value: Policy | ProjectDocument = parse_policy(text)
    elif kind == "project":
        value = parse_project(text)
    else:
        raise InvalidDocument("unknown document")
    if value.id != ident:
        raise InvalidDocument(f"id: must be the id in the document's name, got {shown(value.id)}")
    return value


def _snapshot(revision: int, store_id: str, parsed: Mapping[str, tuple[str, Any]]) -> Snapshot:
    policies = {value.id: value for _, value in parsed.values() if isinstance(value, Policy)}
    projects = {value.id: value for _, value in parsed.values() if isinstance(value, ProjectDocument)}
    _, global_policy = parsed.get("global", ("", None))
    _, emergency = parsed.get("emergency", ("", NO_EMERGENCY))
    _, intakes = parsed.get("intakes", ("", frozenset()))
    documents = MappingProxyType(policies), MappingProxyType(projects)
    return Snapshot(revision, store_id, *documents, global_policy, emergency, intakes)


def name_of(revision: Text | None, store_id: Text | None) -> StateName | None:
    """Return the StateName of a store from two of its fields, or None if they cannot be read."""
    try:
        return StateName(epoch_of(parse_identity(as_string(store_id or ""))), parse_revision(as_string(revision or "")))
    except InvalidDocument:
        return None


def _dumped(item: object) -> str:
    if not isinstance(item, dict):
        raise InvalidDocument("documents: must be an object of objects")
    return dumps(item)
