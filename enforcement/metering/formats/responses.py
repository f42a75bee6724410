"""OpenAI's responses."""

from __future__ import annotations

from typing import Any, Final

from enforcement.metering.formats.openai import add_call, usage_of
from enforcement.metering.formats.reading import AnswerReader, Asked
from enforcement.metering.formats.text import PART_TYPES, Content, as_object, objects_in, utf8_length

_LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_SOUND: Final = "audio.delta"
_REASONING: Final = "response.reasoning"
# Each of these has a fee. Of a search of the web, so has the search itself, and not each page that it opens.
_FEES: Final = frozenset(("web_search_call", "file_search_call"))
_KEPT: Final = ("previous_response_id", "conversation")
_USED: Final = ("action", "code", "queries", "results", "outputs", "tools")
# An item without any of these fields is of an unknown kind.
_READ: Final = frozenset((*_USED, "content", "summary", "arguments", "input", "output", "encrypted_content"))


def ask_response(body: dict[str, Any]) -> Asked:
    """Return what a request for a response asks for."""
    # A lenient server may take 1 or "true" for true.
    goes_on = body.get("background") not in (None, False)
    asked = Asked(default_field="/max_output_tokens", is_background=goes_on)
    asked.read_caps(body, "", "max_output_tokens")
    content = asked.content
    content.add_text(body.get("instructions"))
    given = body.get("input")
    content.add_text(given)
    for item in objects_in(given):
        _add_item(content, item)
    content.add_tools(body.get("tools"), "function", "custom")
    content.add_within(as_object(as_object(body.get("text")).get("format")).get("schema"))
    if any(body.get(name) is not None for name in _KEPT) or type(body.get("prompt")) is dict:
        content.keeps_context = True
    return asked


def _add_item(content: Content, item: dict[str, Any]) -> None:
    """Count a message, a call of a tool, its result, or reasoning of an earlier turn."""
    kind = item.get("type")
    if type(kind) is str and kind in PART_TYPES:
        content.add_block(item)
    elif kind == "item_reference":
        content.keeps_context = True
    elif kind == "image_generation_call":
        content.add_part("image", item)
    elif not item.keys() & _READ:
        content.add_part("other", item)
    else:
        content.add_blocks(item.get("content"))
        content.add_blocks(item.get("summary"))
        if kind not in (None, "message"):
            _add_call(content, item)


def _add_call(content: Content, item: dict[str, Any]) -> None:
    add_call(content, item)
    for name in _USED:
        content.add_within(item.get(name))
    output = item.get("output")
    if type(output) is dict:
        content.add_block(output)
    else:
        content.add_blocks(output)


class ResponsesAnswer(AnswerReader):
    """An answer with a response."""

    def read_body(self, body: dict[str, Any]) -> None:
        self.take_model(body.get("model"))
        for item in objects_in(body.get("output")):
            self.text_bytes += _length_of(item)
        self._take_last(body)

    def read_event(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if type(kind) is not str:
            return
        if kind.startswith(_REASONING) or as_object(event.get("item")).get("type") == "reasoning":
            self.hides_output = True
        if kind.endswith(".delta"):
            if not kind.endswith(_SOUND):
                self.text_bytes += utf8_length(event.get("delta"))
            return
        if kind == "response.output_item.done":
            self.calls += _has_fee(as_object(event.get("item")))
        response = event.get("response")
        if type(response) is dict:
            self.take_model(response.get("model"))
            if kind in _LAST_EVENTS:
                self._take_last(response)

    def _take_last(self, response: dict[str, Any]) -> None:
        self.take_tier(response.get("service_tier"))
        self.calls = max(self.calls, sum(map(_has_fee, objects_in(response.get("output")))))
        if self.take_usage(usage_of(response.get("usage"), "input_tokens", "output_tokens")):
            self.is_final = True

    def end(self) -> None:
        """Do nothing, since only three events have the last word."""


def _has_fee(item: dict[str, Any]) -> bool:
    kind = item.get("type")
    return type(kind) is str and kind in _FEES and as_object(item.get("action")).get("type", "search") == "search"


def _length_of(item: dict[str, Any]) -> int:
    """Return the bytes of texts, refusals, summaries, names and arguments of one output."""
    parts = objects_in(item.get("content")) + objects_in(item.get("summary"))
    said = sum(utf8_length(part.get("text")) + utf8_length(part.get("refusal")) for part in parts)
    return said + sum(utf8_length(item.get(name)) for name in ("name", "arguments", "input"))
