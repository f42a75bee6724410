"""Cohere's chat, versions 1 and 2, and its embeddings."""

from __future__ import annotations

from typing import Final

from enforcement.metering.amounts import Usage
from enforcement.metering.formats.openai import add_call
from enforcement.metering.formats.reading import (
    AnswerReader,
    Asked,
    NotBelieved,
    UnreadableRequest,
    count_in,
    usage_with,
)
from enforcement.metering.formats.text import as_list, as_object, length_within, objects_in, utf8_length

_OTHER_UNITS: Final = ("search_units", "classifications")
_UNITS: Final = ("input_tokens", "output_tokens", "image_tokens")


def ask_cohere_chat(body: dict[str, object]) -> Asked:
    """Return what a request for a chat of version 1 asks for. Another provider has the same path for messages."""
    if type(body.get("message")) is not str:
        raise UnreadableRequest("format")
    asked = Asked(default_field="/max_tokens")
    asked.read_caps(body, "", "max_tokens")
    asked.refuse_no_cap()
    content = asked.content
    content.add_text(body["message"])
    content.add_text(body.get("preamble"))
    for turn in objects_in(body.get("chat_history")):
        content.add_text(turn.get("message"))
        content.add_within(turn.get("tool_calls"))
        content.add_within(turn.get("tool_results"))
    for name in ("documents", "tool_results"):
        content.add_within(body.get(name))
    for name in ("tools", "response_format"):
        content.add_schema(body.get(name))
    content.tools = len(as_list(body.get("tools")))
    content.add_searches(body, "connectors")
    content.keeps_context = body.get("conversation_id") is not None
    return asked


def ask_cohere_messages(body: dict[str, object]) -> Asked:
    """Return what a request for a chat of version 2 asks for."""
    asked = Asked(default_field="/max_tokens")
    asked.read_caps(body, "", "max_tokens")
    asked.refuse_no_cap()
    content = asked.content
    for message in objects_in(body.get("messages")):
        content.add_text(message.get("tool_plan"))
        for call in objects_in(message.get("tool_calls")):
            add_call(content, as_object(call.get("function")))
        said = message.get("content")
        documents = [one for one in objects_in(said) if one.get("type") == "document"]
        content.add_within([document.get("document") for document in documents])
        content.add_blocks([one for one in as_list(said) if one not in documents] if documents else said)
    content.add_within(body.get("documents"))
    content.add_tools(body.get("tools"), "function")
    content.add_schema(as_object(body.get("response_format")).get("json_schema"))
    return asked


def ask_cohere_embedding(body: dict[str, object]) -> Asked:
    """Return what a request for embeddings asks for. Nothing is generated."""
    asked = Asked(cap=0)
    content = asked.content
    content.add_tokens_or_text(body.get("texts"))
    for image in as_list(body.get("images")):
        content.add_part("image", {"data": image})
    for one in objects_in(body.get("inputs")):
        content.add_blocks(one.get("content"))
    return asked


class CohereAnswer(AnswerReader):
    """
    An answer of Cohere. What it bills is less than what its models read.

    A stream of version 1 is JSON in lines, whose last one has the whole response.
    """

    lines = True

    def read_body(self, body: dict[str, object]) -> None:
        self.text_bytes += utf8_length(body.get("text")) + length_within(body.get("tool_calls"))
        self._read_message(as_object(body.get("message")))
        self._take_units(body)

    def read_event(self, event: dict[str, object]) -> None:
        response, delta = event.get("response"), event.get("delta")
        if type(response) is dict:
            self._take_units(response)
            return
        if type(delta) is dict:
            self._read_message(as_object(delta.get("message")))
            is_last = event.get("type") == "message-end" or delta.get("finish_reason") is not None
            self._take_units(delta, is_last=is_last)
            if is_last:
                self.done()  # the usage may have come in an event of its own
            return
        # A line that is a whole answer has its usage beside its text.
        self.text_bytes += utf8_length(event.get("text"))
        self._take_units(event)

    def end(self) -> None:
        self.end_running()

    def _read_message(self, message: dict[str, object]) -> None:
        content, calls = message.get("content"), message.get("tool_calls")
        for part in objects_in(content) if type(content) is list else [as_object(content)]:
            self.text_bytes += utf8_length(part.get("text")) + utf8_length(part.get("thinking"))
        self.text_bytes += utf8_length(message.get("tool_plan"))
        for call in objects_in(calls) if type(calls) is list else [as_object(calls)]:
            called = as_object(call.get("function"))
            self.text_bytes += utf8_length(called.get("name")) + utf8_length(called.get("arguments"))

    def _take_units(self, answer: dict[str, object], *, is_last: bool = True) -> None:
        report = answer.get("usage", answer.get("meta"))
        units = as_object(report).get("billed_units")
        if type(units) is dict:
            self.other_rates = self.other_rates or any(units.get(name) for name in _OTHER_UNITS)
            if self.take_usage(_usage_of(units)):
                self.is_final = self.is_final or is_last


def _usage_of(units: dict[str, object]) -> Usage | None:
    try:
        found = [count_in(units, name) for name in _UNITS]
    except NotBelieved:
        return None
    if all(count is None for count in found):
        return None
    read, said, images = (count or 0 for count in found)
    return usage_with({"input_image": images}, read, 0, 0, said)
