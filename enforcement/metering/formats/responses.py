"""OpenAI's responses."""

from __future__ import annotations

from typing import Final, NamedTuple

from enforcement.metering.amounts import UsageStep, total_of
from enforcement.metering.formats.openai import add_call, usage_of
from enforcement.metering.formats.reading import AnswerReader, Asked
from enforcement.metering.formats.text import (
    PART_TYPES,
    PROMPT_TOKENS,
    Content,
    as_object,
    model_name,
    objects_in,
    utf8_length,
)

_LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_UNDER_WAY: Final = ("queued", "in_progress")  # as the provider goes on in the background
_SOUND: Final = "audio.delta"
_REASONING: Final = "response.reasoning"
# Each of these has a fee. Of a search of the web, so has the search itself, and not each page that it opens.
_FILE_SEARCH: Final = "file_search_call"
_FEES: Final = frozenset(("web_search_call", _FILE_SEARCH))
IMAGE_TOOL: Final = "image_generation"
"""The tool that makes images, with a model of its own."""
DEFAULT_IMAGE_MODEL: Final = "gpt-image-1"
"""Its model, if a request names none."""
_CODE: Final = "code_interpreter_call"
_KEPT: Final = ("previous_response_id", "conversation")
_USED: Final = ("action", "code", "queries", "results", "outputs")
_CLIENT_TOOLS: Final = ("function", "custom", "local_shell")
# The fields with text that the model has read or thought, by the type of an item that the provider may keep.
_SAID_BY: Final = {
    "reasoning": ("encrypted_content", "content"),
    "web_search_call": ("results",),
    _FILE_SEARCH: ("results",),
    _CODE: ("outputs",),
}
# An item without any of these fields is of an unknown kind.
_READ: Final = frozenset((*_USED, "tools", "content", "summary", "arguments", "input", "output", "encrypted_content"))


def ask_response(body: dict[str, object]) -> Asked:
    """Return what a request for a response asks for."""
    # A lenient server may take 1 or "true" for true.
    goes_on = body.get("background") not in (None, False)
    asked = Asked(default_field="/max_output_tokens", is_background=goes_on)
    asked.read_caps(body, "", "max_output_tokens")
    content = asked.content
    asked.refuse_no_cap()
    content.add_text(body.get("instructions"))
    given = body.get("input")
    content.add_text(given)
    for item in objects_in(given):
        _add_item(content, item)
    content.add_tools(body.get("tools"), *_CLIENT_TOOLS)
    asked.tool_models = _tool_models(body.get("tools"))
    wanted = as_object(as_object(body.get("text")).get("format"))
    content.add_within(wanted.get("schema"))
    if wanted.get("type") not in (None, "text"):
        content.added_tokens = PROMPT_TOKENS
    if any(body.get(name) is not None for name in _KEPT) or type(body.get("prompt")) is dict:
        content.keeps_context = True
    return asked


def ask_compaction(body: dict[str, object]) -> Asked:
    """Return what a request to compact a conversation asks for. It takes no cap."""
    asked = ask_response(body)
    asked.default_field = None
    asked.content.has_no_bound("the request cannot cap the tokens of a compaction")
    return asked


def _tool_models(tools: object) -> dict[str, str]:
    """Return the model that makes images, by its tool, if the request has that tool."""
    for tool in objects_in(tools):
        if tool.get("type") == IMAGE_TOOL:
            return {IMAGE_TOOL: model_name(tool.get("model")) or DEFAULT_IMAGE_MODEL}
    return {}


def _add_item(content: Content, item: dict[str, object]) -> None:
    """Count a message, a call of a tool, its result, or reasoning of an earlier turn."""
    kind = item.get("type")
    if type(kind) is str and kind in PART_TYPES:
        content.add_block(item)
    elif kind == "item_reference" or _is_kept(item):
        content.keeps_context = True
    elif kind == "image_generation_call":
        content.add_part("image", item)
    elif not item.keys() & _READ:
        content.add_part("other", item)
    else:
        content.add_blocks(item.get("content"))
        content.add_blocks(item.get("summary"))
        content.add_tools(item.get("tools"), *_CLIENT_TOOLS)
        if kind not in (None, "message"):
            _add_call(content, item)


def _is_kept(item: dict[str, object]) -> bool:
    """Return whether the provider has what an item stands for, and finds it by the id."""
    if not item.get("id"):
        return False
    kind = item.get("type")
    if kind is None and item.get("role") is None:
        return True  # a reference, as its type may be left out
    said = _SAID_BY.get(kind) if type(kind) is str else None
    return said is not None and not any(item.get(name) for name in said)


def _add_call(content: Content, item: dict[str, object]) -> None:
    add_call(content, item)
    for name in _USED:
        content.add_within(item.get(name))
    output = item.get("output")
    if type(output) is dict:
        content.add_block(output)
    else:
        content.add_blocks(output)


class _Use(NamedTuple):
    """The use of a tool in one output."""

    kind: str
    has_fee: bool
    container: str


class ResponsesAnswer(AnswerReader):
    """An answer with a response."""

    def __init__(self) -> None:
        super().__init__()
        self._uses: list[_Use] = []
        self._has_images = False

    def read_body(self, body: dict[str, object]) -> None:
        self.take_model(body.get("model"))
        for item in objects_in(body.get("output")):
            self.text_bytes += _length_of(item)
        if body.get("status") not in _UNDER_WAY:
            self._take_last(body)

    def read_event(self, event: dict[str, object]) -> None:
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
            self._uses.append(_use_of(as_object(event.get("item"))))
            self._take_uses(self._uses)
        response = event.get("response")
        if type(response) is dict:
            self.take_model(response.get("model"))
            if kind in _LAST_EVENTS:
                self._take_last(response)

    def _take_uses(self, uses: list[_Use]) -> None:
        """Note the uses of tools that outputs show, unless more are known."""
        self.calls = max(self.calls, sum(use.has_fee for use in uses))
        kinds = [use.kind for use in uses]
        containers = {use.container for use in uses if use.kind == _CODE}
        for name, count in (("file_searches", kinds.count(_FILE_SEARCH)), ("containers", len(containers))):
            if count > self.more.get(name, 0):
                self.more[name] = count
        self._has_images = self._has_images or f"{IMAGE_TOOL}_call" in kinds

    def _take_last(self, response: dict[str, object]) -> None:
        self.take_modifier("service_tier", response.get("service_tier"))
        self._take_uses(list(map(_use_of, objects_in(response.get("output")))))
        self.take_cost(response.get("usage"))
        usage = usage_of(response.get("usage"), "input_tokens", "output_tokens")
        made = usage_of(as_object(response.get("tool_usage")).get("image_gen"), "input_tokens", "output_tokens")
        if made is not None and (made.all_input or made.all_output):
            usage = usage and total_of([usage, made])
            self.more["steps"] = (UsageStep(made, _image_model(response), IMAGE_TOOL),)
        elif self._has_images:
            self.other_rates = True  # nobody says how many tokens they have
        if self.take_usage(usage):
            self.is_final = True

    def end(self) -> None:
        """Do nothing, since only three events have the last word."""


def _image_model(response: dict[str, object]) -> str | None:
    """Return the model of the tool that makes images, if the response names it."""
    tools = objects_in(response.get("tools"))
    return next((model_name(tool.get("model")) for tool in tools if tool.get("type") == IMAGE_TOOL), None)


def _use_of(item: dict[str, object]) -> _Use:
    kind = item.get("type")
    searches = as_object(item.get("action")).get("type", "search") == "search"
    return _Use(str(kind), str(kind) in _FEES and searches, str(item.get("container_id")))


def _length_of(item: dict[str, object]) -> int:
    """Return the bytes of texts, refusals, summaries, names and arguments of one output."""
    parts = objects_in(item.get("content")) + objects_in(item.get("summary"))
    said = sum(utf8_length(part.get("text")) + utf8_length(part.get("refusal")) for part in parts)
    return said + sum(utf8_length(item.get(name)) for name in ("name", "arguments", "input"))
