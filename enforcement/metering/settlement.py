"""
Decide what a reservation for a metered request is charged in the end, from all that happens to the request.

Nothing here charges a counter. The caller charges the estimate, tells what happens, and charges each
:class:`Settlement` that it gets, through the limiter that made the reservation.

Only the provider knows what a request did cost. Without its last word, the estimate stays charged if it is a bound, or
if the answer does not show all output. Otherwise a client could leave after the last word that it wants to read, and
get back what the provider charges for all that nobody saw.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple, Self

from enforcement.metering.amounts import Usage
from enforcement.metering.charges import NO_TOKENS, ChargeTerms, Costs, Counts
from enforcement.metering.estimate import Estimate
from enforcement.metering.opening import Opening
from enforcement.metering.prices import Price, TokenCounts
from enforcement.metering.request import MeteredRequest
from enforcement.model.instants import DAY_SECONDS, SECOND_US
from enforcement.model.limits import Limit
from enforcement.model.metered import METERED_UNITS

SETTLED_WITHIN_US: Final = 7 * DAY_SECONDS * SECOND_US
"""How long after its reservation a lost request can still be settled."""

OPEN: Final = "open"
SETTLED: Final = "settled"
LOST: Final = "lost"

EXACT: Final = "exact"
DRAINED: Final = "drained"
OBSERVED: Final = "observed"
ESTIMATED: Final = "estimated"
NOTHING: Final = "nothing"

IN_BETWEEN: Final = frozenset((408, 499, 502, 504, *range(520, 528)))
"""
Statuses of proxies and load balancers that have not waited for the provider, which may have answered all the same. From
520 on they are those of a CDN. 503 and 529 are not among them, as providers refuse requests with these.
"""


class DrainBounds(NamedTuple):
    """
    How much of an answer is read after its client left.

    Attributes:
        ms: Milliseconds after the client left.
        bytes: Bytes that are read after the client left.
        at_once: Answers that a process reads so at the same time.
    """

    ms: int = 600_000
    bytes: int = 64 * 1_048_576
    at_once: int = 256


class Settlement(NamedTuple):
    """
    The final charge of a reservation.

    Attributes:
        settled_as: ``exact``, ``drained``, ``observed``, ``estimated`` or ``nothing``.
        costs: The cost for each limit in place of its estimate. Slots are not part of it.
        counts: The tokens that are charged. None for ``nothing``, and for a request that no meter can read.
        approximate: Whether a class of tokens was charged without a price of its own.
        price: Their price, if it is another one than that by which they were estimated.
    """

    settled_as: str
    costs: Costs
    counts: TokenCounts | None = None
    approximate: bool = False
    price: Price | None = None

    @property
    def is_last_word(self) -> bool:
        """Whether the provider has reported it, so that it also settles a lost reservation."""
        return self.settled_as in (EXACT, DRAINED)


class MeteredReservation:
    """
    One reservation, from its estimate to its end.

    Each method that says what happened returns the settlement if the reservation is settled by it, else None. This
    happens once at most. All instants are microseconds since the epoch, and do not go backwards.

    Args:
        terms: What the request is charged by.
        estimate: What was charged for it. None if no meter can read the request.
        reserved_at_us: The instant of the reservation.
        estimated_costs: What the estimate costs each limit, if the caller knows that. None: it is computed.

    Attributes:
        state: ``open``, ``settled`` or ``lost``.
        settled_as: How it was settled, ``estimated`` if it is lost. None while it is open.
        status: HTTP status of the answer. None if there was none so far.
        price: See :class:`Settlement`. Whoever sets it sets *terms* with it.
    """

    state = OPEN
    settled_as: str | None = None
    status: int | None = None
    price: Price | None = None
    _asked: MeteredRequest | None = None
    _hides_output = False
    _is_whole = False
    _was_filtered = False
    _text_bytes = 0
    _calls = 0
    _report: Usage | None = None
    _last_word: str | None = None
    _left_at_us: int | None = None
    _drain: DrainBounds | None = None
    _drained_bytes = 0
    _alive = True

    def __init__(
        self,
        terms: ChargeTerms,
        estimate: Estimate | None,
        reserved_at_us: int,
        estimated_costs: Costs | None = None,
    ) -> None:
        self.terms = terms
        self.estimate = estimate
        self.reserved_at_us = reserved_at_us
        self.estimated_costs = terms.costs(estimate or NO_TOKENS) if estimated_costs is None else estimated_costs
        self.costs = self.estimated_costs
        self._readable = estimate is not None

    @classmethod
    def of(cls, opening: Opening, at_us: int) -> Self:
        """Return a new reservation for what a request was charged at an instant."""
        result, asked = cls(opening.terms, opening.estimate, at_us, opening.estimated_costs), opening.asked
        if isinstance(asked, MeteredRequest):
            if asked.is_background:
                result.unreadable()  # the provider goes on after its answer, which says nothing of that
            result._asked = asked
        return result

    @property
    def holds_slots(self) -> bool:
        """Whether the request still occupies its slots, which end with its client."""
        return self.state == OPEN and self._left_at_us is None

    @property
    def draining(self) -> bool:
        """Whether the answer is read although its client left."""
        return self.state == OPEN and self._drain is not None

    def answered(self, status: int, at_us: int) -> Settlement | None:
        """Note the status of the answer, whose body is still to come. An error after a part of it is no new answer."""
        over = None if self._drain is None else self.passed(at_us)
        if self.state != SETTLED and not (status >= 400 and self._has_begun):
            self.status = status
        return over

    def streamed(self, text_bytes: int, raw_bytes: int, at_us: int, *, calls: int = 0) -> Settlement | None:
        """
        Note a part of the answer that was read.

        Args:
            text_bytes: Length of the generated text in it, in UTF-8.
            raw_bytes: All of its bytes.
            calls: Calls of the provider's tools that were seen in all parts so far.
        """
        if (over := self.passed(at_us)) or self.state != OPEN:
            return over
        self._text_bytes += text_bytes
        self._calls = max(self._calls, calls)
        if self._drain is None:
            return None
        self._drained_bytes += raw_bytes
        return self._finish() if self._drained_bytes > self._drain.bytes else None

    def reported(self, usage: Usage, at_us: int, *, final: bool) -> Settlement | None:
        """
        Note what the provider reports. A report replaces the one before, but not its last word.

        Args:
            final: Whether this is the provider's last word. It settles a lost reservation, too.
        """
        over = None if self._drain is None else self.passed(at_us)
        if over or self.state == SETTLED or (self._last_word and not final):
            return over
        if self.state == LOST and self._too_late(at_us):
            return over
        self._report = usage
        if final:
            self._last_word = EXACT if self._left_at_us is None else DRAINED
        return self._finish() if final and (self._left_at_us is not None or self.state == LOST) else None

    def concluded(self, usage: Usage, at_us: int) -> Settlement | None:
        """Note the provider's last word at the end of the answer, as :meth:`reported` and :meth:`ended` do."""
        if self.state == OPEN and self._left_at_us is None:  # as nearly always
            self._report, self._last_word = usage, EXACT
            return self._settle(EXACT, usage)
        return self.reported(usage, at_us, final=True) or self.ended(at_us)

    def unreadable(self) -> None:
        """Note that the answer cannot be read, so that nothing in it can be counted."""
        self._readable = False

    def hides_output(self) -> None:
        """Note that the provider charges output that the answer does not show, or shows only at its end."""
        self._hides_output = True

    def was_filtered(self) -> None:
        """Note that a filter of the provider has read the request and refused it, which charges what it has read."""
        self._was_filtered = True

    def ended(self, at_us: int, *, whole: bool = False) -> Settlement | None:
        """
        Settle a request whose answer is over, or whose connection broke before an answer.

        Args:
            whole: Whether the answer came to its end, so that all was seen of it that it shows.
        """
        over = None if self._drain is None else self.passed(at_us)
        if over or (self.state == LOST and self._too_late(at_us)):
            return over
        self._is_whole = whole
        return self._finish()

    def refused(self, status: int | None, at_us: int, *, sent: bool = True) -> Settlement | None:
        """
        Settle a request that the provider did not take.

        A status of something in between says nothing of the provider, and an error after a part of the answer does not
        undo that part. Such a request is settled as one that broke off.

        Args:
            status: Its HTTP status, 400 or more. None if there was no connection.
            sent: Whether the request was sent to the provider. Otherwise the status is our own.
        """
        if over := self.passed(at_us):
            return over
        if self.state != OPEN:
            return None
        if sent and (self._has_begun or status in IN_BETWEEN):
            self.status = self.status if self._has_begun else status
            return self._finish()
        self.status = status
        return self._settle(NOTHING, None)

    def client_left(self, at_us: int, *, sent: bool = True, drain: DrainBounds | None = None) -> Settlement | None:
        """
        Note that the client left, which frees the slots, and settle the request unless its answer is still read.

        Args:
            sent: Whether the request was sent to the provider.
            drain: How much of the answer may be read. None: nothing.
        """
        if over := self.passed(at_us):
            return over
        if self.state != OPEN or self._left_at_us is not None:
            return None
        self._left_at_us = at_us
        if not sent:
            return self._settle(NOTHING, None)
        if drain is None or self._last_word or not self._readable:
            return self._finish()
        self._drain = drain
        return None

    def passed(self, at_us: int) -> Settlement | None:
        """Settle a request whose answer has been read for as long as it may be after its client left."""
        if self._drain is None or self.state != OPEN or not self._alive:
            return None
        since_us = at_us - (self._left_at_us or 0)
        return self._finish() if since_us > self._drain.ms * 1_000 else None

    def died(self) -> None:
        """Note that the process that serves the request died, so that it reads no more of the answer."""
        self._alive = False

    def expired(self, at_us: int) -> Settlement | None:
        """Note that nobody has renewed the reservation in time. It is lost, and keeps the charge of its estimate."""
        if over := self.passed(at_us):
            return over
        if self.state == OPEN:
            self.state, self.settled_as = LOST, ESTIMATED
        return None

    def settled_by_hand(self, usage: TokenCounts | None, at_us: int) -> Settlement | None:
        """
        Settle an open or lost reservation by order of an operator or a late job.

        Args:
            usage: The tokens to charge. None gives everything back.
        Returns:
            The settlement. None if it was settled before, or was reserved more than seven days ago.
        """
        if over := self.passed(at_us):
            return over
        if self.state == SETTLED or at_us - self.reserved_at_us > SETTLED_WITHIN_US:
            return None
        return self._settle(NOTHING if usage is None else EXACT, usage)

    def debt(self) -> Costs:
        """Return for each limit how much more than its estimate was charged."""
        return self._beyond(1)

    def given_back(self) -> Costs:
        """Return for each limit how much less than its estimate was charged."""
        return self._beyond(-1)

    def _beyond(self, sign: int) -> Costs:
        pairs = zip(self.costs, self.estimated_costs, strict=True)
        return tuple(None if a is None or b is None else max(0, sign * (a - b)) for a, b in pairs)

    @property
    def _has_begun(self) -> bool:
        """Whether a part of an answer came that is no error."""
        began = self.status is not None and self.status < 400
        return began or (self.status is None and (self._text_bytes > 0 or self._report is not None))

    def _too_late(self, at_us: int) -> bool:
        """Return whether a lost request can no longer be settled."""
        return at_us - self.reserved_at_us > SETTLED_WITHIN_US

    def _finish(self) -> Settlement | None:
        """Settle the request by what is known of it, unless it is settled. Only a last word settles a lost one."""
        if self.state == SETTLED or (self.state == LOST and not self._last_word):
            return None
        if self._last_word:
            return self._settle(self._last_word, self._report)
        estimate = self.estimate
        if self.status is not None and self.status >= 400 and self.status not in IN_BETWEEN:
            if self._was_filtered and estimate is not None:
                return self._settle(ESTIMATED, Counts(estimate.input))
            return self._settle(NOTHING, None)
        if estimate is None or not self._readable:
            return self._settle(ESTIMATED, estimate)
        if (
            estimate.bound
            or self._hides_output
            or self.status in IN_BETWEEN
            or (self._asked is not None and self._asked.hides_output(whole=self._is_whole))
        ):
            # Tokens that were reported or seen have been generated, and may be more than a typical estimate.
            seen = min(estimate.seen(self._text_bytes), estimate.output)
            return self._settle(ESTIMATED, estimate, self._observed(estimate, seen))
        return self._settle(OBSERVED, self._observed(estimate, estimate.seen(self._text_bytes)))

    def _observed(self, estimate: Estimate, seen: int) -> TokenCounts:
        report = self._report
        if report is None:
            if estimate.classes and not self._calls:
                return replace(estimate, cap=seen, n=1)
            return Counts(estimate.input, output=seen, calls=self._calls)
        return report.at_least(seen, self._calls)

    def _settle(self, word: str, counts: TokenCounts | None, least: TokenCounts | None = None) -> Settlement:
        """Charge each limit for tokens, or for *least* if they cost it more."""
        costs = self.terms.costs(counts or NO_TOKENS)
        if least is not None:
            pairs = zip(costs, self.terms.costs(least), strict=True)
            dearer = tuple([None if cost is None else max(cost, more or 0) for cost, more in pairs])
            costs, counts = dearer, counts if dearer == costs else least
        rows = zip(costs, self.terms.limits, strict=True)
        self.costs = tuple(
            [0 if cost and limit.charge_on and _spared(limit, self.status) else cost for cost, limit in rows]
        )
        self.state, self.settled_as = SETTLED, word
        approximate = counts is not None and self.terms.approximates(counts)
        return Settlement(word, self.costs, counts, approximate, self.price)


def _spared(limit: Limit, status: int | None) -> bool:
    """
    Return whether a limit does not count answers with this status.

    Without a status of the provider no class holds. Tokens and money stay charged then, because a client could
    otherwise leave before the answer and pay nothing.
    """
    if status is None or (status in IN_BETWEEN and limit.unit in METERED_UNITS):
        return limit.unit == "requests"
    return f"{status // 100}xx" not in limit.charge_on and str(status) not in limit.charge_on
