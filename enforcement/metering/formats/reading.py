"""The base of all formats: the caps of a request, the counts of a report, and the state of an answer so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Decimal
from typing import Any, ClassVar, Final

from enforcement.metering.amounts import MAX_COUNT, Usage
from enforcement.metering.formats.text import Content, as_object, model_name, objects_in

MAX_CAP: Final = 2**31 - 1
"""Greatest cap on generated tokens that a request may ask for."""

NO_CAP: Final = "some servers take a cap of 0 tokens for none"
"""Why a request with such a cap has no bound."""

MAX_CHOICES: Final = 1_000
"""Greatest number of answers that a request may ask for at once."""


MODIFIERS: Final = "modifiers"
"""The field of a report under which names stand that the rates depend on."""

# Values that change no rate.
_USUAL: Final = frozenset(
    (
        *("", "auto", "default", "standard", "standard_only"),
        *("ON_DEMAND", "TRAFFIC_TYPE_UNSPECIFIED", "unspecified", "global", "not_available"),
    )
)
_MAX_MODIFIER: Final = 64
_MAX_COST: Final = 10**9


class UnreadableRequest(Exception):
    """A request that cannot be metered. Its only argument is the reason in a word."""


class NotBelieved(Exception):
    """A report of usage with a count that is none. All of the report is ignored."""


@dataclass(slots=True)
class Asked:
    """
    The parts of a request that decide what its answer may use.

    Attributes:
        cap: Most tokens that each answer may have; None if the request does not say.
        n: How many answers are generated.
        cap_fields: JSON pointers of the caps that the request has.
        default_field: JSON pointer of the field for a cap, if the request has none. None: there is nothing to cap.
        writes_cap: The cap is written into *default_field* also if it stands in others, which the server may ignore.
        content: What the model has to read.
        is_background: The provider answers at once and goes on generating.
        tool_models: The models of the provider's tools that the request may use, by tool.
    """

    cap: int | None = None
    n: int = 1
    cap_fields: tuple[str, ...] = ()
    default_field: str | None = None
    writes_cap: bool = False
    content: Content = field(default_factory=Content)
    is_background: bool = False
    tool_models: Mapping[str, str] = field(default_factory=dict)

    def read_caps(self, body: Mapping[str, object], parent: str, *names: str) -> None:
        """
        Take the greatest of the caps that a request has under several names.

        Args:
            body: The object with the caps.
            parent: JSON pointer of *body*; empty for the whole request.
        Raises:
            UnreadableRequest: One of the caps is no integer in its range.
        """
        for name in names:
            value = body.get(name)
            if value is not None:
                cap = _whole_number(value, 0, MAX_CAP, "bad_cap")
                self.cap = cap if self.cap is None else max(self.cap, cap)
                self.cap_fields += (f"{parent}/{name}",)

    def refuse_no_cap(self) -> None:
        """Note that a request with a cap of 0 has no bound."""
        if self.cap == 0:
            self.content.has_no_bound(NO_CAP)

    def read_choices(self, body: Mapping[str, object], *names: str) -> None:
        """Take the greatest number of answers that a request asks for under several names, or raise as above."""
        for name in names:
            value = body.get(name)
            if value is not None:
                self.n = max(self.n, _whole_number(value, 1, MAX_CHOICES, "bad_n"))


def _whole_number(value: object, least: int, greatest: int, reason: str) -> int:
    if type(value) is not int or not least <= value <= greatest:
        raise UnreadableRequest(reason)
    return value


def count_in(report: Mapping[str, object], name: str) -> int | None:
    """Return one count of a report, or None if it is missing or null. Raise NotBelieved if it is no count."""
    value = report.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise NotBelieved(name)
    return value


def details_in(report: Mapping[str, object], name: str) -> dict[str, object]:
    """Return the details of a report; an empty object if they are missing or null. Raise NotBelieved for others."""
    details = report.get(name)
    if details is None:
        return {}
    if type(details) is not dict:
        raise NotBelieved(name)
    return details


def searches_in(report: object) -> int | None:
    """Return the searches of the web with a fee, as Anthropic reports them, or None if a report does not say."""
    return uses_in(report, "web_search_requests")


def uses_in(report: object, name: str) -> int | None:
    """Return the uses of a tool of the provider that a report says under ``server_tool_use``, or None."""
    used = report.get("server_tool_use") if type(report) is dict else None
    uses = used.get(name) if type(used) is dict else None
    return uses if type(uses) is int and 0 <= uses <= MAX_COUNT else None


def whole_count_in(report: Mapping[str, object], *names: str) -> int | None:
    """Return the first count of a report that is there, as above. Some providers write 28 as 28.0."""
    for name in names:
        value = report.get(name)
        if type(value) is float and value.is_integer():
            value = int(value)
        if value is not None:
            return count_in({name: value}, name)
    return None


def by_modality(details: object, kind: str = "modality", count: str = "tokenCount") -> dict[str, int]:
    """Return the tokens of each modality, in lower case, that a list of details says. Other values are ignored."""
    result: dict[str, int] = {}
    for one in objects_in(details):
        name, tokens = one.get(kind), one.get(count)
        if type(name) is str and type(tokens) is int and 0 <= tokens <= MAX_COUNT:
            result[name.lower()] = result.get(name.lower(), 0) + tokens
    return result


class Split:
    """
    The tokens of one side, of which details name some. What no detail names stays in the first class.

    Attributes:
        left: The tokens that no detail has named so far.
    """

    def __init__(self, total: int) -> None:
        self.left = total

    def take(self, tokens: int | None) -> int:
        """Return as many of the tokens that are left, and name them."""
        taken = min(tokens or 0, self.left)
        self.left -= taken
        return taken


def usage_with(more: Mapping[str, int], input: int, cached_input: int, cache_write: int, output: int) -> Usage:
    """Return a usage with these tokens, and with those of *more* that are not 0."""
    usage, more = Usage(input, cached_input, cache_write, output), {name: n for name, n in more.items() if n}
    return usage.with_more(more) if more else usage


def _cost_of(report: dict[str, Any]) -> int | None:
    """
    Return the cost that a router reports, in millionths of its currency, rounded up, or None if it is no cost.

    With a key of the client's own, the provider's part is charged by the provider, and reported beside.
    """
    costs = [report["cost"]]
    if report.get("is_byok") is True:
        costs.append(as_object(report.get("cost_details")).get("upstream_inference_cost"))
    if any(type(cost) not in (int, float) or not 0 <= cost <= _MAX_COST for cost in costs):
        return None
    total = sum([Decimal(repr(cost)) for cost in costs], Decimal(0))
    return int((total * 1_000_000).to_integral_value(ROUND_CEILING))


class AnswerReader:
    """
    The state of the answer to one request, as far as it was read. Each format has a subclass.

    A report of usage replaces the one before as a whole. Counts are never added up.

    Attributes:
        usage: What was reported last; None if nothing was.
        is_final: That report is the last word of the provider.
        model: The name that the answer gives the model; None if it gives none.
        text_bytes: Bytes of generated text, in UTF-8.
        counted_bytes: As many of them had come when the usage was reported.
        calls: Calls of the provider's tools that were seen, which it charges a fee for.
        hides_output: Reasoning was seen, of which the answer may show a part or a summary.
        other_rates: See :class:`~enforcement.metering.amounts.Usage`.
        more: What the answer says beside its reports, by field of a
            :class:`~enforcement.metering.amounts.DetailedUsage`. Empty for most answers.
        has_finished: The answer has said that it is complete.
        has_failed: An error has come in the place of the rest of the answer.
        answers: How many answers the request asks for.
        untold: Tokens that only the total of a report has. Google leaves reasoning out of all other counts of chat
            completions, and charges it as output.
        reads_head: Whether header fields of an answer may say what it has used.
        frames: Whether a stream of this format is an event stream of AWS.
        lines: Whether a stream of this format may be JSON in lines.
    """

    reads_head: ClassVar[bool] = False
    frames: ClassVar[bool] = False
    lines: ClassVar[bool] = False

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.is_final = False
        self.model: str | None = None
        self.text_bytes = self.counted_bytes = 0
        self.calls = 0
        self.hides_output = False
        self.other_rates = False
        self.more: dict[str, Any] = {}
        self.has_finished = False
        self.has_failed = False
        self.answers = 1
        self.untold = 0

    def read_head(self, header: Callable[[str], str | None]) -> None:
        """
        Read the header fields of an answer, if some of them say what it has used.

        Args:
            header: Return the value of the field with a name in lower case, or None.
        """

    def read_body(self, body: dict[str, object]) -> None:
        """Read an answer that is one JSON object."""
        raise NotImplementedError

    def read_event(self, event: dict[str, object]) -> None:
        """Read one event of a stream."""
        raise NotImplementedError

    def end(self) -> None:
        """Note that a stream has ended whole, or has said that it ends."""
        raise NotImplementedError

    def done(self) -> None:
        """Note that a stream has said that it ends."""
        self.has_finished = True
        self.end()

    def end_running(self) -> None:
        """
        Take usage that was reported while a stream ran for the last word, if the answer is complete, and no text has
        come since.
        """
        is_whole = self.has_finished and not self.has_failed
        if self.usage is not None and is_whole and self.text_bytes <= self.counted_bytes:
            self.is_final = True

    def take_usage(self, usage: Usage | None) -> bool:
        """Take a report, if it is one, together with the calls that were seen. Return whether it was taken."""
        if usage is None:
            return False
        if usage.other_rates:
            self.other_rates = True
        if self.calls > usage.calls or self.other_rates:
            usage = replace(usage, calls=max(self.calls, usage.calls), other_rates=self.other_rates)
        if self.more:
            usage = usage.with_more(self.more)
        self.usage, self.counted_bytes = usage, self.text_bytes
        return True

    def take_modifier(self, name: str, value: object) -> None:
        """
        Take the last value of what the rates depend on, such as ``service_tier``. A value that is no name is ignored.
        """
        if type(value) is not str or (value in _USUAL and not self.more):
            return
        others = [one for one in self.more.pop(MODIFIERS, ()) if not one.startswith(f"{name}=")]
        if value not in _USUAL:
            others.append(f"{name}={value[:_MAX_MODIFIER]}")
        if others:
            self.more[MODIFIERS] = tuple(others)

    def take_cost(self, report: object) -> None:
        """Take the cost that a report says, in the currency of the provider."""
        if type(report) is dict and report.get("cost") is not None:
            cost = _cost_of(report)
            if cost is None:
                self.other_rates = True
            else:
                self.more["cost"] = cost

    def take_model(self, value: object) -> None:
        """Take the name of the model. A value that is no name is ignored."""
        # Almost every event repeats the name.
        if value is not None and value != self.model:
            self.model = model_name(value) or self.model

    def blank(self) -> AnswerReader:
        """Return a new reader that reads an event as this one does."""
        return type(self)()

    def only_added_text(self, *, reports: bool = False) -> bool:
        """
        Return whether nothing was read so far that a stream may not repeat at will: text and the model alone.

        Args:
            reports: Whether there may be a report of usage beside, which is not the last word.
        """
        blank = self.blank()
        if reports:
            blank.usage, blank.counted_bytes, blank.untold = self.usage, self.counted_bytes, self.untold
        blank.model, blank.text_bytes, blank.other_rates = self.model, self.text_bytes, self.other_rates
        blank.more = self.more
        blank.hides_output, blank.answers = self.hides_output, self.answers
        return vars(blank) == vars(self)
