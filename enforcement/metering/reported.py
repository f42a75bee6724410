"""
Read the usage that a response or a stream reports, after the SDK of a provider has parsed it.

For applications that call a provider themselves. What passes a metered door is read as bytes, by
:class:`~enforcement.metering.answer.AnswerMeter`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from enforcement.metering.amounts import Usage
from enforcement.metering.answer import FORMATS, reader_of
from enforcement.metering.estimated import text_tokens
from enforcement.metering.formats.reading import AnswerReader
from enforcement.metering.reasoning import is_reasoning_model

_OBJECTS: Final = {
    "chat.completion": "openai-chat",
    "chat.completion.chunk": "openai-chat",
    "response": "openai-responses",
    "text_completion": "openai-completions",
}
_MESSAGE_EVENTS: Final = frozenset(
    {
        "message",
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    }
)
_GEMINI: Final = ("usageMetadata", "candidates", "modelVersion")
_SNAKE: Final = re.compile("_([a-z])")


class ReportedUsage(NamedTuple):
    """
    The usage that a response reports.

    Attributes:
        format: The API format, one of :data:`~enforcement.metering.answer.FORMATS`.
        model: The name that it gives the model. Empty if it gives none.
        usage: Its tokens by class.
        hides_output: Whether the model reasons, so that not all of its output is to be seen in the response.
    """

    format: str
    model: str
    usage: Usage
    hides_output: bool = False


def read_report(response: object) -> ReportedUsage:
    """
    Return the usage of a whole response.

    Args:
        response: An object of the SDK of OpenAI, Anthropic or Google, or its JSON object as a mapping.
    Raises:
        ValueError: It is none of these, or reports no usage that can be believed.
    """
    body = _object_of(response)
    name = None if body is None else _format_of(body)
    if body is None or name is None:
        rule = f"must be a response of one of the formats {', '.join(FORMATS)}"
        raise ValueError(f"response: {rule}, got {_described(response)}. A stream passes through metered().")
    reader = reader_of(name)
    reader.read_body(_as_sent(body, name))
    if reader.usage is None:
        raise ValueError(f"response: must report its usage, got {_described(response)} of {name} without it.")
    return ReportedUsage(name, reader.model or "", reader.usage)


class StreamReport:
    """
    The usage that the events of one stream have reported so far. No event raises an error, whatever it contains.

    Attributes:
        has_begun: Whether there was an event.
    """

    def __init__(self) -> None:
        self._format: str | None = None
        self._reader: AnswerReader | None = None
        self._whole: ReportedUsage | None = None
        self.has_begun = False

    def read_whole(self, response: object) -> ReportedUsage:
        """Read a response in the place of a stream, and return its report, or raise ValueError. See read_report()."""
        self.has_begun = True
        self._whole = read_report(response)
        return self._whole

    def add(self, event: object) -> None:
        """Read an event: an object of an SDK, or a mapping. An event that is neither is ignored."""
        self.has_begun = True
        body = _object_of(event)
        if body is None:
            return
        if self._reader is None or self._format is None:
            self._format = _format_of(body)
            if self._format is None:
                return
            self._reader = reader_of(self._format)
        self._reader.read_event(_as_sent(body, self._format))

    def end(self) -> None:
        """Note that the stream has come to its end."""
        if self._reader is not None:
            self._reader.end()

    @property
    def is_last_word(self) -> bool:
        """Whether the provider has said what the whole response costs."""
        return self._whole is not None or (self._reader is not None and self._reader.is_final)

    def report(self) -> ReportedUsage | None:
        """
        Return what is known of the cost.

        Returns:
            The report of the provider. If the stream broke off before its last word, the output is at least what the
            text that was seen usually has. None if nothing was reported.
        """
        reader = self._reader
        if self._whole is not None:
            return self._whole
        if reader is None or reader.usage is None or self._format is None:
            return None
        usage = reader.usage
        if not reader.is_final:
            output = max(usage.output, text_tokens(reader.text_bytes))
            usage = replace(usage, output=output, calls=max(usage.calls, reader.calls))
        model = reader.model or ""
        return ReportedUsage(self._format, model, usage, reader.hides_output or is_reasoning_model(model))


def _object_of(value: object) -> dict[str, object] | None:
    """Return the JSON object of a response or an event, or None if it is none."""
    if isinstance(value, Mapping):
        return dict(value)
    dump = getattr(value, "model_dump", None)
    if not callable(dump):
        return None
    try:
        # By alias, so that the names are those of the wire. What a newer provider fills otherwise is no fault.
        body = dump(by_alias=True, warnings=False)
    except (TypeError, ValueError):
        return None  # the method of another package, or a value that it cannot write
    return body if type(body) is dict else None


def _format_of(body: Mapping[str, object]) -> str | None:
    """Return the format of a response or an event, by the fields that no other format has, or None."""
    result = _OBJECTS.get(str(body.get("object")))
    kind = body.get("type")
    if result is not None:
        return result
    if isinstance(kind, str):
        if kind.startswith("response."):
            return "openai-responses"
        if kind in _MESSAGE_EVENTS:
            return "anthropic-messages"
    if any(name in body for name in (*_GEMINI, "usage_metadata")):
        return "gemini"
    if "choices" in body:
        return "openai-chat"
    return "openai-embeddings" if body.get("object") == "list" and "data" in body else None


def _as_sent(body: dict[str, object], name: str) -> dict[str, object]:
    """Return an object with the names of the wire. Google's SDK also has them with underscores."""
    return _camel(body) if name == "gemini" and any("_" in key for key in body) else body


def _camel(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_SNAKE.sub(lambda found: found[1].upper(), key): _camel(item) for key, item in value.items()}
    return [_camel(item) for item in value] if type(value) is list else value


def _described(response: object) -> str:
    if isinstance(response, Mapping):
        return f"an object with {', '.join(sorted(map(str, response))[:5]) or 'no fields'}"
    return type(response).__name__
