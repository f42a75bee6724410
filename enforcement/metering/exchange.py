"""Follow one metered request from its admission to its settlement, while its answer passes to the client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from enforcement.metering.amounts import DetailedUsage, Usage
from enforcement.metering.answer import AnswerMeter
from enforcement.metering.charges import answered_by
from enforcement.metering.opening import Opening
from enforcement.metering.prices import Price
from enforcement.metering.reasoning import Reasoners
from enforcement.metering.request import MeteredRequest
from enforcement.metering.settlement import DrainBounds, MeteredReservation, Settlement
from enforcement.metering.streams.encodings import READ_ALWAYS

NOTHING_USED: Final = Usage()
# The provider goes on after its answer, or has sent a part of it only (RFC 9110, 15.3.3 and 15.3.7).
_NOT_ALL: Final = frozenset({202, 206})


class MeteredExchange:
    """
    One admitted request and its answer.

    Each method that says what happened returns the settlement if the request is settled by it, which happens once.
    All instants are microseconds since the epoch, by any clock that does not go backwards.

    Args:
        opening: What was charged.
        at_us: The instant of the charge.
        encodings: See :class:`~enforcement.metering.answer.AnswerMeter`.
        reasoners: Models that are known to reason. Its own is added if the answer shows that. None: none are.
    Attributes:
        meter: Reads the answer. None before its head, and for one that cannot be read. Chunks for a client who is there
            may be fed to it at once: only bytes that are drained have to be counted, by :meth:`feed`.
        upstream: The host that answers, if it is known.
    """

    meter: AnswerMeter | None = None
    upstream = ""
    _raw_bytes = 0
    _told_text = 0
    _told_bytes = 0
    _told_usage: Usage | None = None
    _told_final = False

    def __init__(
        self,
        opening: Opening,
        at_us: int,
        *,
        encodings: frozenset[str] = READ_ALWAYS,
        reasoners: Reasoners | None = None,
    ) -> None:
        self.opening = opening
        self.reservation = MeteredReservation.of(opening, at_us)
        self._encodings = encodings
        self._reasoners = reasoners
        asked = opening.asked
        self._model = asked.attributes.get("model") if isinstance(asked, MeteredRequest) else None
        if reasoners is not None and (self._model or "") in reasoners:
            self.reservation.hides_output()

    @property
    def is_settled(self) -> bool:
        """Whether the request is settled."""
        return self.reservation.state == "settled"

    @property
    def has_head(self) -> bool:
        """Whether the head of an answer came."""
        return self.reservation.status is not None

    @property
    def is_drained(self) -> bool:
        """Whether the answer is read although its client left."""
        return self.reservation.draining

    @property
    def hides_usage(self) -> bool:
        """Whether bytes of the answer may be kept from the client, so that its length is not known before its end."""
        asked = self.opening.asked
        return isinstance(asked, MeteredRequest) and asked.hide_usage

    def answered(self, status: int, content_encoding: str | None, at_us: int) -> Settlement | None:
        """Note the head of the answer."""
        if status in _NOT_ALL:
            self.reservation.unreadable()
        asked = self.opening.asked
        if not isinstance(asked, MeteredRequest):
            return self.reservation.answered(status, at_us)
        if asked.is_counting:
            if status < 400:
                self.reservation.reported(NOTHING_USED, at_us, final=True)  # unless the answer reports more
                self.meter = AnswerMeter(asked.format, status, content_encoding, encodings=self._encodings)
        elif asked.has_tokens:
            self.meter = AnswerMeter(
                asked.format, status, content_encoding, hide_usage=asked.hide_usage, encodings=self._encodings
            )
            if asked.n > 1:
                self.meter.expect(asked.n)
        return self.reservation.answered(status, at_us)

    def read_head(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Read the header fields of the answer, if its format says there what it has used."""
        if self.meter is not None and self.meter.reads_head:
            found = {name.lower(): value for name, value in headers}
            self.meter.read_head(lambda name: found.get(name.encode(), b"").decode("latin-1") or None)

    def answered_here(self, status: int, at_us: int) -> Settlement | None:
        """Note the head of an answer that is not the provider's, which never got the request."""
        if status < 400:
            return self.answered(status, None, at_us)
        return self.reservation.refused(status, at_us, sent=False)

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk of the answer, and return the bytes for the client."""
        self._raw_bytes += len(chunk)
        return chunk if self.meter is None else self.meter.feed(chunk)

    def read_on(self, at_us: int) -> Settlement | None:
        """Take what was read since the last call into account. Needed while the answer is drained."""
        return self._tell(at_us)

    def ended(self, at_us: int, *, whole: bool) -> tuple[bytes, Settlement | None]:
        """
        Note the end of the answer, or that it will never come, and return the last bytes for the client beside the
        settlement.

        Args:
            whole: The answer came to its end. False: its connection broke.
        """
        meter, reservation = self.meter, self.reservation
        rest = b"" if meter is None else meter.finish(whole)
        if meter is not None and meter.was_filtered:
            reservation.was_filtered()
        if meter is not None and (usage := meter.last_word()) is not None:
            if self._reasoners is not None and meter.hides_output:
                self._saw_reasoning()
            if meter.model != self._model or not usage.is_plain:
                self._price(usage, usage)
            # The last word says it all: what was read besides could not change the costs.
            return rest, reservation.concluded(usage, at_us)
        return rest, self._tell(at_us) or reservation.ended(at_us, whole=whole)

    def refused(self, status: int | None, at_us: int) -> Settlement | None:
        """Note that the provider did not take the request. *status* is None if there was no connection."""
        return self.reservation.refused(status, at_us)

    def client_left(self, at_us: int, *, sent: bool, drain: DrainBounds | None = None) -> Settlement | None:
        """
        Note that the client left.

        Args:
            sent: Whether the request was sent to the provider before.
            drain: How much of the answer is read on. None: nothing.
        """
        return self._tell(at_us) or self.reservation.client_left(at_us, sent=sent, drain=drain)

    def passed(self, at_us: int) -> Settlement | None:
        """Settle the request if its answer was drained for as long as it may be."""
        return self.reservation.passed(at_us)

    def _tell(self, at_us: int) -> Settlement | None:
        """Tell the reservation what the meter has read since the last time."""
        meter, reservation = self.meter, self.reservation
        if meter is None:
            return None
        if not meter.is_readable:
            reservation.unreadable()
        if meter.hides_output:
            reservation.hides_output()
            self._saw_reasoning()
        usage, final, over = meter.usage, meter.is_final, None
        if usage is not None and (usage is not self._told_usage or final != self._told_final):
            self._told_usage, self._told_final = usage, final
            usage = meter.charged or usage
            self._price(usage, usage if final else None)
            over = reservation.reported(usage, at_us, final=final)
        elif usage is None and meter.model is not None:
            self._price(None, None)
        text, reported = meter.text_bytes or 0, self._told_text
        raw, self._told_text, self._told_bytes = self._raw_bytes - self._told_bytes, text, self._raw_bytes
        return over or reservation.streamed(max(0, text - reported), raw, at_us, calls=meter.calls)

    def _saw_reasoning(self) -> None:
        asked = self.opening.asked
        if self._reasoners is not None and isinstance(asked, MeteredRequest):
            self._reasoners.saw(asked.attributes.get("model", ""), lambda: asked.read_again().value)

    def _price(self, usage: Usage | None, last: Usage | None) -> None:
        """
        Charge by the cost that the upstream reports, if its costs are charged, or by a dearer model that answers.

        Args:
            usage: What was reported. None if nothing was.
            last: The same, if it is the last word. None: the estimate may stay.
        """
        terms = self.opening.terms
        model = None if self.meter is None or self.meter.model == self._model else self.meter.model
        has_cost = isinstance(usage, DetailedUsage) and usage.cost is not None
        if model is None and not has_cost:
            return
        counts = last or self.opening.estimate or NOTHING_USED

        def priced(price: Price) -> Price:
            charged = price.at_upstream(self.upstream) if has_cost else price
            return charged if charged is not price or model is None else answered_by(price, model, counts)

        former = self.opening.price
        price = None if former is None else priced(former)
        self.reservation.price = None if price is former else price
        changes = any(quote and quote.price and priced(quote.price) is not quote.price for quote in terms.quotes)
        self.reservation.terms = terms.with_prices(priced) if changes else terms
