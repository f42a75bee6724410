"""OpenAI's chat completions, legacy completions and embeddings. Azure and many other servers have the same formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from enforcement.metering.amounts import MAX_COUNT, Usage
from enforcement.metering.formats.reading import (
    AnswerReader,
    Asked,
    NotBelieved,
    Split,
    count_in,
    details_in,
    searches_in,
    usage_with,
)
from enforcement.metering.formats.text import PROMPT_TOKENS, Content, as_list, as_object, objects_in, utf8_length

# Fields by which some servers add to what the model reads: results of searches, and documents.
_SEARCHES: Final = ("data_sources", "dataSources", "plugins", "search_parameters")
# Fields of Mistral by which the provider puts a prompt of its own before the messages.
_PROMPTS: Final = ("prompt_mode", "safe_prompt")
# Fields by which a chat may give a model more to read than its messages.
_BESIDE_MESSAGES: Final = frozenset(
    (*_SEARCHES, "tools", "functions", "web_search_options", "prediction", "response_format", *_PROMPTS)
)
# Objects that servers embed in the place of a text.
_TEXT, _PICTURE, _WITH_BLOCKS = frozenset({"text"}), frozenset({"image"}), frozenset({"type", "role", "content"})
_OTHERS: Final = frozenset(("audio_tokens", "image_tokens", "video_tokens"))
_OF_ROUTERS: Final = frozenset(("server_tool_use", "cost"))
_REASONING: Final = ("reasoning_content", "reasoning", "reasoning_details")
_BY_GOOGLE: Final = "gemini"
_SAID: Final = ("content", "refusal", *_REASONING)


def ask_chat(body: dict[str, object]) -> Asked:
    """Return what a request for a chat completion asks for."""
    # xAI answers a deferred request at once, and is asked for the completion later.
    asked = Asked(default_field="/max_completion_tokens", is_background=body.get("deferred") not in (None, False))
    asked.read_caps(body, "", "max_tokens", "max_completion_tokens")
    asked.read_choices(body, "n")
    content = asked.content
    if asked.cap == 0:
        asked.refuse_no_cap()
    messages = body.get("messages")
    for message in messages if type(messages) is list else ():
        if type(message) is dict:
            _add_message(content, message)
    if body.keys().isdisjoint(_BESIDE_MESSAGES):
        return asked  # as most requests do
    content.add_tools(body.get("tools"), "function", "custom")
    content.add_schema(body.get("functions"))
    content.tools += len(as_list(body.get("functions")))
    content.add_searches(body, *_SEARCHES)
    if body.get("web_search_options") is not None:
        content.add_own_tool("web_search")
        content.has_no_bound("web_search_options lets the model read more than the request has")
    if body.get("prediction") is not None:
        content.has_no_bound("what is predicted is charged as output, also beyond the cap")
    wanted = as_object(body.get("response_format"))
    content.add_within(wanted.get("json_schema"))
    if wanted.get("type") not in (None, "text") or any(body.get(name) for name in _PROMPTS):
        content.added_tokens = PROMPT_TOKENS
    return asked


def _add_message(content: Content, message: dict[str, object]) -> None:
    said = message.get("content")
    if type(said) is str and said.isascii():  # as nearly always
        content.text_bytes += len(said)
    else:
        content.add_blocks(said)
    if len(message) == 2 and "role" in message and "content" in message:
        return  # as most messages are
    content.add_text(message.get("refusal"))
    content.add_text(message.get("reasoning_content"))
    content.add_text(message.get("reasoning"))
    for call in objects_in(message.get("tool_calls")):
        add_call(content, as_object(call.get("function")))
        add_call(content, as_object(call.get("custom")))
    add_call(content, as_object(message.get("function_call")))
    if message.get("audio") is not None:
        content.keeps_context = True  # the sound of an earlier answer, by its id


def add_call(content: Content, call: dict[str, object]) -> None:
    """Count the name and the arguments of a call of a tool, which are text or a JSON value."""
    if call:
        content.add_text(call.get("name"))
        content.add_within(call.get("arguments"))
        content.add_within(call.get("input"))


def ask_completion(body: dict[str, object]) -> Asked:
    """Return what a request for legacy completions asks for. Each prompt of a list is answered *n* times."""
    asked = Asked(default_field="/max_tokens")
    asked.read_caps(body, "", "max_tokens")
    asked.read_choices(body, "n", "best_of")
    prompt = body.get("prompt")
    asked.n *= max(1, sum(1 for item in as_list(prompt) if type(item) is not int))
    if not body.get("echo"):  # which is how tokens of a prompt are weighed
        asked.refuse_no_cap()
    asked.content.add_tokens_or_text(prompt)
    asked.content.add_text(body.get("suffix"))
    return asked


def ask_embedding(body: dict[str, object]) -> Asked:
    """Return what a request for embeddings asks for. Nothing is generated."""
    asked, given = Asked(cap=0), body.get("input")
    asked.content.add_tokens_or_text(given)
    for item in [given] if type(given) is dict else as_list(given):
        if type(item) is dict:
            _add_embedded(asked.content, item)
    return asked


def _add_embedded(content: Content, item: dict[str, object]) -> None:
    """Count an object in the place of a text, which may be a picture or a file."""
    if item.keys() <= _TEXT:
        content.add_text(item.get("text"))
    elif item.keys() <= _WITH_BLOCKS:
        content.add_blocks(item.get("content"))
    else:
        content.add_part("image" if item.keys() <= _PICTURE else "other", item)


def usage_of(report: object, input_name: str, output_name: str) -> Usage | None:
    """
    Return the usage that a report of OpenAI's formats says.

    Args:
        report: What stands under ``usage``.
        input_name: Name of the count of all input; those of its details derive from it.
        output_name: Name of the count of output.
    Returns:
        The usage. None if the report is missing, lacks one of the two counts, or is not believed.
    """
    if type(report) is not dict:
        return None
    try:
        total, output = count_in(report, input_name), count_in(report, output_name)
        if total is None or output is None:
            return None
        if f"{input_name}_details" not in report and f"{output_name}_details" not in report:
            return Usage(total, 0, 0, output)
        return _split(report, input_name, output_name, total, output)
    except NotBelieved:
        return None


def _split(report: Mapping[str, object], input_name: str, output_name: str, total: int, output: int) -> Usage:
    read, generated = details_in(report, f"{input_name}_details"), details_in(report, f"{output_name}_details")
    if not read and not generated:
        return Usage(total, 0, 0, output)
    cached = min(count_in(read, "cached_tokens") or 0, total)
    written = count_in(read, "cache_write_tokens") or 0
    # Some routers bill what they write also where they have read it.
    rest = max(0, total - cached - written)
    output += min(count_in(generated, "reasoning_tokens") or 0, _beyond(report, total + output))  # as xAI counts it
    if not any(details[name] for details in (read, generated) for name in _OTHERS & details.keys()):
        return Usage(rest, cached, written, output)
    fresh, said = Split(rest), Split(output)
    more = {
        "input_audio": fresh.take(count_in(read, "audio_tokens")),
        "input_image": fresh.take(count_in(read, "image_tokens")),
        "input_video": fresh.take(count_in(read, "video_tokens")),
        "output_audio": said.take(count_in(generated, "audio_tokens")),
        "output_image": said.take(count_in(generated, "image_tokens")),
    }
    return usage_with(more, fresh.left, cached, written, said.left)


def _beyond(report: Mapping[str, object], counted: int) -> int:
    """Return how many tokens the total of a report has beyond those that are counted."""
    total = report.get("total_tokens")
    return max(0, total - counted) if type(total) is int and total <= MAX_COUNT else 0


class CompletionsAnswer(AnswerReader):
    """An answer with legacy completions."""

    def read_body(self, body: dict[str, object]) -> None:
        self.read_event(body)
        self.is_final = self.usage is not None

    def read_event(self, event: dict[str, object]) -> None:
        self.take_model(event.get("model"))
        if "service_tier" in event:
            self.take_modifier("service_tier", event["service_tier"])
        choices = event.get("choices")
        if choices:
            self.read_choices(choices)
        if event.get("error") is not None:
            self.has_failed = True
        report, is_last = event.get("usage"), choices == []
        if report is None and "x_groq" in event:
            event = as_object(event["x_groq"])
            report, is_last = event.get("usage"), True  # only the last event has it
        if report is not None:
            if "usage_breakdown" in event:
                self.other_rates = True  # of several models, and of tools
            self._take_usage(report, is_last)

    def read_choices(self, choices: object) -> None:
        """Count the text of all choices of a body or an event, and note whether one is complete."""
        for choice in objects_in(choices):
            self.read_finish(choice)
            self.text_bytes += utf8_length(choice.get("text"))

    def read_finish(self, choice: dict[str, object]) -> None:
        """Note whether a choice is complete, or ends in an error."""
        reason = choice.get("finish_reason")
        if reason is not None:
            self.has_finished = True
        if reason == "error" or ("error" in choice and choice["error"] is not None):
            self.has_failed = True

    def _take_usage(self, report: Any, is_last: bool) -> None:
        if type(report) is dict and not _OF_ROUTERS.isdisjoint(report):
            searches = searches_in(report)  # as routers report them that translate other formats
            if searches is not None:
                self.calls = searches
            self.take_cost(report)
        usage = self.usage_in(report)
        if self.take_usage(usage):
            if usage is not None and _BY_GOOGLE in (self.model or "").lower():
                self.untold = _beyond(report, usage.all_input + usage.all_output)
            details = None if self.hides_output else report.get("completion_tokens_details")
            if details and as_object(details).get("reasoning_tokens"):
                self.hides_output = True
            self.is_final = self.is_final or is_last
            self.has_failed = False  # what is reported with an error or after it includes all that came before

    def usage_in(self, report: object) -> Usage | None:
        """Return what a report says, or None if it is missing or not believed."""
        return usage_of(report, "prompt_tokens", "completion_tokens")

    def end(self) -> None:
        self.end_running()


class ChatAnswer(CompletionsAnswer):
    """An answer with chat completions."""

    def read_choices(self, choices: object) -> None:
        if type(choices) is not list:
            return
        for choice in choices:
            if type(choice) is dict:
                self.read_finish(choice)
                delta = choice.get("delta")
                if delta:
                    self._read_message(delta)
                message = choice.get("message")
                if message:
                    self._read_message(message)

    def _read_message(self, message: object) -> None:
        if type(message) is not dict:
            return
        total = 0
        for name, value in message.items():
            if value and name in _REASONING:
                self.hides_output = True
            if type(value) is str:
                if name in _SAID:
                    total += len(value) if value.isascii() else utf8_length(value)
            elif name == "annotations":
                self.calls = max(self.calls, int(any(map(_is_citation, objects_in(value)))))
            elif value:
                total += _length_of_call(name, value)
        self.text_bytes += total


def _is_citation(annotation: dict[str, object]) -> bool:
    """Return whether an annotation shows that the model has searched the web, which a chat says in no other way."""
    return annotation.get("type") == "url_citation"


def _length_of_call(name: str, value: object) -> int:
    if name == "tool_calls":
        calls = objects_in(value)
        return sum(_called(call.get("function")) + _called(call.get("custom")) for call in calls)
    if name == "function_call":
        return _called(value)
    if name == "audio":
        return utf8_length(as_object(value).get("transcript"))
    return 0


def _called(call: object) -> int:
    return sum(utf8_length(as_object(call).get(name)) for name in ("name", "arguments", "input"))


class EmbeddingsAnswer(CompletionsAnswer):
    """An answer with embeddings, which has no output."""

    def read_choices(self, choices: object) -> None:
        """Do nothing, since no text is generated."""

    def usage_in(self, report: object) -> Usage | None:
        if type(report) is not dict:
            return None
        try:
            total = count_in(report, "prompt_tokens")
            if total is None:
                total = count_in(report, "total_tokens")  # all that Voyage says
            details_in(report, "prompt_tokens_details")
        except NotBelieved:
            return None
        return None if total is None else Usage(input=total)
