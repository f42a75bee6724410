"""Remember the tokens that a process has met, both those that exist and those that do not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcement.model.documents import InvalidDocument, TokenDocument, parse_token
from enforcement.usage.counts import TokenUsage

if TYPE_CHECKING:
    from enforcement.plan.decision import Decision
    from enforcement.state.token_plans import TokenPlans

MAX_TOKENS: Final = 10_000
MAX_UNKNOWN: Final = 10_000
UNKNOWN_SECONDS: Final = 5.0
"""How long an unknown token is remembered. It may be created without an announcement that reaches this process."""

_SECOND_CHANCES: Final = 16

Text = str | bytes


class DocumentProblem(NamedTuple):
    """
    A document that was refused.

    Attributes:
        document: Its name.
        reason: The rule that it breaks.
        whole: Whether all other documents were refused with it.
    """

    document: str
    reason: str
    whole: bool = False


class TokenEntry:
    """
    The cached knowledge about one token.

    Attributes:
        token: Its document. None: the token is unknown, or its document cannot be read.
        problem: Why the document cannot be read. Empty otherwise.
        generation: The generation of the documents that ``plan`` was made for, set by the planner. -1: none yet.
        plan: What the planner has made. None: nothing yet.
        usage: Where its decisions are counted.
    """

    __slots__ = ("generation", "plan", "problem", "text", "token", "until", "usage", "used")

    def __init__(self, token: TokenDocument | None, problem: str = "", text: str = "") -> None:
        self.token = token
        self.problem = problem
        self.text = text
        self.generation = -1
        self.plan: TokenPlans | Decision | None = None
        self.usage: TokenUsage | None = None
        self.used = False
        self.until = 0.0


class AnonymousEntry(TokenEntry):
    """
    The requests without a token that count for one project.

    Its token has no id, and stands for all these requests.
    """

    __slots__ = ()

    def __init__(self, project: str) -> None:
        super().__init__(TokenDocument("", project, "anonymous", None, revoked=False, expires_at_us=None))


class TokenCache:
    """
    A bounded cache of tokens by their digests.

    Any thread may call :meth:`find`, without a lock. The owner holds its lock for every other method.

    Args:
        clock: Returns monotonic seconds.
        on_second_chance: Called when a token stays only because it was used. Plans that are found elsewhere must then
            be dropped, because finding them does not mark the token as used.

    Attributes:
        kept: How often the document of a token was added.
    """

    def __init__(self, clock: Callable[[], float], on_second_chance: Callable[[], None]) -> None:
        self.kept = 0
        self._clock = clock
        self._on_second_chance = on_second_chance
        # A dict finds its first entry slowly after many deletions at its beginning. An OrderedDict does not.
        self._known: OrderedDict[str, TokenEntry] = OrderedDict()
        self._unknown: OrderedDict[str, TokenEntry] = OrderedDict()
        # When tokens have changed. A document that was read before such a change must not be added after it.
        self._changed_at: dict[str, int] = {}
        self._all_changed_at = 0

    def find(self, digest: str) -> TokenEntry | None:
        """Return the entry of a token, or None if the store has to be asked."""
        entry = self._known.get(digest)
        if entry is not None:
            entry.used = True
            return entry
        entry = self._unknown.get(digest)
        if entry is not None and self._clock() < entry.until:
            return entry
        return None

    def add(self, digest: str, entry: TokenEntry, asked_at: int) -> TokenEntry:
        """
        Add the entry that the store replied unless it is outdated, and return an equal known entry, or else this one.

        Args:
            asked_at: The generation of the documents before the store was asked. If the token has changed since, the
                entry may be outdated. It is returned but not added.
        """
        if max(self._all_changed_at, self._changed_at.get(digest, 0)) > asked_at:
            return entry
        known = self._known.get(digest)
        if known is not None and known.text == entry.text:
            return known
        self._add(digest, entry)
        return entry

    def drop(self, digests: Sequence[str], generation: int) -> None:
        """Forget the tokens with these digests, so that :meth:`add` refuses what was read before *generation*."""
        for digest in digests:
            self._known.pop(digest, None)
            self._unknown.pop(digest, None)
            self._changed_at[digest] = generation
        if len(self._changed_at) > MAX_TOKENS:
            self._changed_at, self._all_changed_at = {}, generation

    def replace(self, entries: OrderedDict[str, TokenEntry], generation: int) -> None:
        """Replace all tokens by those that were read with this generation of the documents."""
        self._known, self._unknown, self._changed_at = entries, OrderedDict(), {}
        self._all_changed_at = generation

    def read(self, texts: Mapping[str, Text | None]) -> tuple[OrderedDict[str, TokenEntry], list[DocumentProblem]]:
        """
        Return the entries of the tokens that exist by digest, and a DocumentProblem for each text that cannot be read.

        Nothing is replaced yet.
        """
        entries: OrderedDict[str, TokenEntry] = OrderedDict()
        problems = []
        for digest, text in texts.items():
            known = self._known.get(digest)
            if known is not None and text is not None and known.text == as_string(text):
                entries[digest] = known
                continue
            entry = read_entry(text)
            if entry.problem:
                problems.append(DocumentProblem(f"token:{digest}", entry.problem))
                entry = known or entry
            if entry.token is not None:
                entries[digest] = entry
        return entries, problems

    def entries(self) -> list[TokenEntry]:
        """Return the entries of all tokens that exist in a new list, the latest last."""
        return list(self._known.values())

    def known(self) -> OrderedDict[str, TokenEntry]:
        """Return a copy of all tokens that exist, by digest."""
        return self._known.copy()

    def digests(self) -> list[str]:
        """Return the digests of all tokens that exist."""
        return list(self._known)

    def _add(self, digest: str, entry: TokenEntry) -> None:
        self._known.pop(digest, None)
        self._unknown.pop(digest, None)
        if entry.token is not None:
            self._make_room()
            self._known[digest] = entry
            self.kept += 1
            return
        entry.until = self._clock() + UNKNOWN_SECONDS
        if len(self._unknown) >= MAX_UNKNOWN:
            self._unknown.popitem(last=False)
        self._unknown[digest] = entry

    def _make_room(self) -> None:
        """
        Drop a token that was not used lately, if the cache is full.

        In a strict order of use every reader would have to write. Here a reader only sets a flag, and a token that was
        used gets a second chance. The number of chances is bounded, so that no request has to look at all tokens.
        """
        for _ in range(_SECOND_CHANCES):
            if len(self._known) < MAX_TOKENS:
                return
            oldest, entry = self._known.popitem(last=False)
            if entry.used:
                entry.used = False
                self._known[oldest] = entry
                self._on_second_chance()
        while len(self._known) >= MAX_TOKENS:
            self._known.popitem(last=False)


def read_entry(text: Text | None) -> TokenEntry:
    """Return a new token entry of a document, without a token if the document is None or cannot be read."""
    if text is None:
        return TokenEntry(None)
    text = as_string(text)
    try:
        return TokenEntry(parse_token(text), text=text)
    except InvalidDocument as exc:
        return TokenEntry(None, str(exc))


def as_string(value: Text) -> str:
    """
    Return bytes as a string, and a string unchanged. What is not UTF-8 becomes half a surrogate pair, which every
    reader refuses.
    """
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
