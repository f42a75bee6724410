"""What all formats share: the caps of a request, the counts of a report, and what an answer has said so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from enforcement.metering.formats.text import Content, model_name
from enforcement.metering.usage import MAX_COUNT, Usage

MAX_CAP: Final = 2**31 - 1
"""Greatest cap on generated tokens that a request may ask for."""

MAX_CHOICES: Final = 1_000
"""Greatest number of answers that a request may ask for at once."""


_USUAL_TIERS: Final = frozenset(("", "auto", "default", "standard", "standard_only"))


class UnreadableRequest(Exception):
    """A request that cannot be metered. Its only argument is the reason in a word."""


class NotBelieved(Exception):
    """A report of usage with a count that is none. All of the report is ignored."""


@dataclass(slots=True)
class Asked:
    """
    What a request asks for.

    Attributes:
        cap: Most tokens that each answer may have; None if the request does not say.
        n: How many answers are generated.
        cap_fields: JSON pointers of the caps that the request has.
        default_field: JSON pointer of the field for a cap, if the request has none. None: there is nothing to cap.
        content: What the model has to read.
        is_background: The provider answers at once and goes on generating.
    """

    cap: int | None = None
    n: int = 1
    cap_fields: tuple[str, ...] = ()
    default_field: str | None = None
    content: Content = field(default_factory=Content)
    is_background: bool = False

    def read_caps(self, body: Mapping[str, Any], parent: str, *names: str) -> None:
        """
        Take the greatest of the caps that a request has under several names.

        Args:
            body: The object with the caps.
            parent: JSON pointer of *body*; empty for the whole request.
        Raises:
            UnreadableRequest: One of the caps is no integer in its range.
        """
        for name in names:
            cap = _whole_number(body.get(name), 0, MAX_CAP, "bad_cap")
            if cap is not None:
                self.cap = cap if self.cap is None else max(self.cap, cap)
                self.cap_fields += (f"{parent}/{name}",)

    def read_choices(self, body: Mapping[str, Any], *names: str) -> None:
        """Take the greatest number of answers that a request asks for under several names, or raise as above."""
        for name in names:
            self.n = max(self.n, _whole_number(body.get(name), 1, MAX_CHOICES, "bad_n") or 1)


def _whole_number(value: Any, least: int, greatest: int, reason: str) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not least <= value <= greatest:
        raise UnreadableRequest(reason)
    return value


def count_in(report: Mapping[str, Any], name: str) -> int | None:
    """Return one count of a report, or None if it is missing or null. Raise NotBelieved if it is no count."""
    value = report.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise NotBelieved(name)
    return value


def some_in(report: Mapping[str, Any], name: str) -> bool:
    """Return whether a count of a report that belongs to no class is above 0. Any other value is ignored."""
    value = report.get(name)
    return type(value) is int and value > 0


def details_in(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the details of a report; an empty object if they are missing or null. Raise NotBelieved for others."""
    details = report.get(name)
    if details is None:
        return {}
    if type(details) is not dict:
        raise NotBelieved(name)
    return details


def searches_in(report: Any) -> int | None:
    """Return the searches of the web with a fee, as Anthropic reports them, or None if a report does not say."""
    used = report.get("server_tool_use") if type(report) is dict else None
    searches = used.get("web_search_requests") if type(used) is dict else None
    return searches if type(searches) is int and 0 <= searches <= MAX_COUNT else None


class AnswerReader:
    """
    What the answer to one request has said so far. Each format has a subclass.

    A report of usage replaces the one before as a whole. Counts are never added up.

    Attributes:
        usage: What was reported last; None if nothing was.
        is_final: That report is the last word of the provider.
        model: The name that the answer gives the model; None if it gives none.
        text_bytes: Bytes of generated text, in UTF-8.
        calls: Calls of the provider's tools that were seen, which it charges a fee for.
        hides_output: Reasoning was seen, of which the answer may show a part or a summary.
        other_rates: See :class:`~enforcement.metering.usage.Usage`.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.is_final = False
        self.model: str | None = None
        self.text_bytes = 0
        self.calls = 0
        self.hides_output = False
        self.other_rates = False

    def read_body(self, body: dict[str, Any]) -> None:
        """Read an answer that is one JSON object."""
        raise NotImplementedError

    def read_event(self, event: dict[str, Any]) -> None:
        """Read one event of a stream."""
        raise NotImplementedError

    def end(self) -> None:
        """Note that a stream has ended whole, or has said that it ends."""
        raise NotImplementedError

    def take_usage(self, usage: Usage | None) -> bool:
        """Take a report, if it is one, together with the calls that were seen. Return whether it was taken."""
        if usage is None:
            return False
        if usage.other_rates:
            self.other_rates = True
        if self.calls > usage.calls or self.other_rates:
            usage = replace(usage, calls=max(self.calls, usage.calls), other_rates=self.other_rates)
        self.usage = usage
        return True

    def take_tier(self, value: Any) -> None:
        """Take the service tier that served the request. A value that is no name is ignored."""
        if type(value) is str and value not in _USUAL_TIERS:
            self.other_rates = True

    def take_model(self, value: Any) -> None:
        """Take the name of the model. A value that is no name is ignored."""
        # Almost every event repeats the name.
        if value is not None and value != self.model:
            self.model = model_name(value) or self.model

    def only_added_text(self) -> bool:
        """Return whether nothing was read so far that a stream may not repeat at will: text and the model alone."""
        blank = type(self)()
        blank.model, blank.text_bytes, blank.other_rates = self.model, self.text_bytes, self.other_rates
        blank.hides_output = self.hides_output
        return vars(blank) == vars(self)
