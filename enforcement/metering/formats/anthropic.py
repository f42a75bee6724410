"""Anthropic's messages."""

from __future__ import annotations

from typing import Any, Final

from enforcement.metering.amounts import Usage, UsageStep, total_of
from enforcement.metering.formats.reading import (
    AnswerReader,
    Asked,
    NotBelieved,
    count_in,
    details_in,
    searches_in,
    usage_with,
    uses_in,
)
from enforcement.metering.formats.text import (
    PART_TYPES,
    PROMPT_TOKENS,
    Content,
    as_list,
    as_object,
    model_name,
    objects_in,
    utf8_length,
)

_COUNTS: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
_LIFETIMES: Final = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
# Fields by which the provider reads more than the request says, or reads it twice.
_ADDING: Final = ("mcp_servers", "container", "compaction")
# Tools that the client runs. What they are is not in the request: the provider tells it the model.
_CLIENT_TOOLS: Final = (
    *("bash_20241022", "bash_20250124", "memory_20250818"),
    *("text_editor_20241022", "text_editor_20250124", "text_editor_20250429", "text_editor_20250728"),
)
_BLOCKS: Final = PART_TYPES | {"search_result"}
_NO_MORE: Final[dict[str, int]] = {}
_NO_COUNTS: Final = {"input_tokens": 0, "output_tokens": 0}
# Steps whose tokens the counts of the message leave out. The second is one of another model.
_COMPACTION: Final = "compaction"
_ADVISOR: Final = "advisor_message"
_WITH_PROMPT: Final = ("output_config", "output_format")
_MODIFIERS: Final = ("service_tier", "speed", "inference_geo")
_SAID: Final = ("text", "thinking", "partial_json", "name")
_REASONING: Final = ("thinking", "redacted_thinking", "thinking_delta", "signature_delta")


def ask_message(body: dict[str, object]) -> Asked:
    """Return what a request for a message asks for."""
    asked = Asked(default_field="/max_tokens")
    asked.read_caps(body, "", "max_tokens")
    content = asked.content
    _add_blocks(content, body.get("system"))
    for message in objects_in(body.get("messages")):
        _add_blocks(content, message.get("content"))
    content.add_tools(body.get("tools"), "custom", *_CLIENT_TOOLS)
    content.add_searches(body, *_ADDING)
    if not _only_removes(body.get("context_management")):
        content.add_searches(body, "context_management")
    if any(body.get(name) for name in _WITH_PROMPT):
        content.added_tokens = PROMPT_TOKENS
    if body.get("tools"):
        content.added_tokens += PROMPT_TOKENS * sum(
            tool.get("type") in _CLIENT_TOOLS for tool in objects_in(body["tools"])
        )
    return asked


def _add_blocks(content: Content, value: object) -> None:
    """Count a string or an array of blocks, and the blocks inside the results of tools and documents."""
    waiting = [value]
    while waiting:
        blocks = waiting.pop()
        if type(blocks) is str:
            content.add_text(blocks)
        elif type(blocks) is list:
            waiting.extend(_inner(content, block) for block in blocks)


def _inner(content: Content, block: Any) -> Any:
    """Count one block, and return the blocks inside it, or None."""
    kind = block.get("type") if type(block) is dict else None
    if type(kind) is not str:
        content.add_block(block)
    elif kind.endswith("tool_use"):
        content.add_text(block.get("name"))
        content.add_within(block.get("input"))
    elif kind.endswith("tool_result"):
        inner = block.get("content")
        return _result(content, inner) if type(inner) is dict else inner
    elif kind == "search_result":
        _add_citing(content, block)
        return block.get("content")
    elif kind == "document":
        return _document(content, block)
    else:
        content.add_block(block)
    return None


def _result(content: Content, result: dict[str, object]) -> object:
    """Count a result that is an object: what a program printed, an error, or a block. Return the blocks in it."""
    if _is_block(result):
        return [result]
    if "source" in result:
        content.add_part("other", result)
        return None
    inner = result.get("content")
    inner = [inner] if type(inner) is dict else as_list(inner)
    blocks = [one for one in inner if _is_block(one)]
    content.add_within({**result, "content": [one for one in inner if not _is_block(one)]} if blocks else result)
    return blocks


def _is_block(value: object) -> bool:
    kind = as_object(value).get("type")
    return type(kind) is str and kind in _BLOCKS


def _only_removes(management: object) -> bool:
    """Return whether a request lets the provider do nothing with its messages but leave some of them out."""
    management = as_object(management)
    edits = management.get("edits")
    return (
        management.keys() == {"edits"}
        and type(edits) is list
        and all(str(as_object(edit).get("type")).startswith("clear_tool_uses_") for edit in edits)
    )


def _add_citing(content: Content, block: dict[str, object]) -> None:
    """Note that the provider says how to cite, if a document or a result of a search is to be cited."""
    if as_object(block.get("citations")).get("enabled"):
        content.added_tokens = PROMPT_TOKENS


def _document(content: Content, block: dict[str, object]) -> object:
    _add_citing(content, block)
    source = as_object(block.get("source"))
    kind = source.get("type")
    if kind == "text":
        return source.get("data")
    if kind == "content":
        return source.get("content")
    content.add_part("file", block)
    return None


class MessagesAnswer(AnswerReader):
    """
    An answer with a message.

    ``message_start`` has the first counts, and each ``message_delta`` the last ones of what it counts again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.steps: tuple[tuple[object, UsageStep], ...] = ()
        self.has_delta = False
        self.has_stopped = False

    def read_body(self, body: dict[str, object]) -> None:
        self.take_model(body.get("model"))
        for block in objects_in(body.get("content")):
            self._read_block(block)
        self._take_searches(body.get("usage"))
        self._take_usage(body.get("usage"))
        self.is_final = self.usage is not None

    def read_event(self, event: dict[str, object]) -> None:
        kind = event.get("type")
        if kind == "content_block_delta":
            self._read_block(event.get("delta"))
        elif kind == "content_block_start":
            self._read_block(event.get("content_block"))
        elif kind == "message_start":
            self._read_start(as_object(event.get("message")))
        elif kind == "message_delta":
            self._read_delta(event)
        elif kind == "message_stop":
            self.has_stopped = True
        else:
            return
        self.is_final = self.has_stopped and self.has_delta and self.usage is not None

    def end(self) -> None:
        """Do nothing, since the end of the body is not the last word of this format."""

    def _read_block(self, block: object) -> None:
        if type(block) is dict:
            kind = block.get("type")
            if kind == "server_tool_use" and block.get("name") == "web_search":
                self.calls += 1
            elif kind in _REASONING:
                self.hides_output = True
            for name in _SAID:
                if name in block:
                    self.text_bytes += utf8_length(block[name])

    def _read_start(self, message: dict[str, object]) -> None:
        self.take_model(message.get("model"))
        for block in objects_in(message.get("content")):
            self._read_block(block)
        self._take_usage(message.get("usage"))

    def _read_delta(self, event: dict[str, object]) -> None:
        self._take_searches(event.get("usage"))
        if self._take_usage(event.get("usage")):
            self.has_delta = True
        if as_object(event.get("delta")).get("stop_reason") is not None:
            self.has_stopped = True

    def _take_usage(self, report: object) -> bool:
        """Merge a report into the counts, and return whether it was believed and had a count."""
        try:
            counts = _counts_of(report)
            steps = _steps_in(as_object(report))
        except NotBelieved:
            return False
        self.counts |= counts
        self.steps = self.steps if steps is None else steps
        self._take_rates(as_object(report))
        self.take_usage(self._usage())
        return bool(counts)

    def _usage(self) -> Usage | None:
        """Return the usage of the message and of the steps beside it, or None if a count is missing."""
        usage = _usage_of(self.counts)
        if usage is None or not self.steps:
            return usage
        beside = [step.usage for kind, step in self.steps if kind in (_COMPACTION, _ADVISOR)]
        return total_of([usage, *beside]).with_more({"steps": tuple(step for _, step in self.steps)})

    def _take_rates(self, report: dict[str, object]) -> None:
        """Note what the rates depend on, and tools that have other fees."""
        for name in _MODIFIERS:
            if name in report:
                self.take_modifier(name, report[name])
        if uses_in(report, "code_execution_requests"):
            self.other_rates = True

    def _take_searches(self, report: object) -> None:
        """Take the number of searches that have a fee. Those that failed were seen, and have none."""
        searches = searches_in(report)
        if searches is not None:
            self.calls = searches


def _counts_of(report: object) -> dict[str, int]:
    if type(report) is not dict:
        return {}
    details_in(report, "output_tokens_details")
    found = {name: count_in(report, name) for name in _COUNTS}
    written = details_in(report, "cache_creation")
    found |= {name: count_in(written, name) for name in _LIFETIMES}
    return {name: count for name, count in found.items() if count is not None}


def _steps_in(report: dict[str, object]) -> tuple[tuple[object, UsageStep], ...] | None:
    """
    Return the steps of an answer, each beside its type, because each has a tier of its own. Return none if there is
    only that of the message, and None if a report does not list them.
    """
    if type(report.get("iterations")) is not list:
        return None
    found = objects_in(report["iterations"])
    if len(found) == 1 and found[0].get("type") == "message":
        return ()
    return tuple((step.get("type"), _step(step)) for step in found)


def _step(step: dict[str, object]) -> UsageStep:
    usage = _usage_of({**_NO_COUNTS, **_counts_of(step)}) or Usage()
    return UsageStep(usage, model_name(step.get("model")), "advisor" if step.get("type") == _ADVISOR else "")


def _usage_of(counts: dict[str, int]) -> Usage | None:
    """Return the usage that counts say, or None if they lack one of two."""
    if "input_tokens" not in counts or "output_tokens" not in counts:
        return None
    for_minutes, for_an_hour = (counts.get(name, 0) for name in _LIFETIMES)
    written = counts.get("cache_creation_input_tokens", for_minutes + for_an_hour)
    for_an_hour = min(for_an_hour, written)
    read = counts.get("cache_read_input_tokens", 0)
    more = {"cache_write_1h": for_an_hour} if for_an_hour else _NO_MORE
    return usage_with(more, counts["input_tokens"], read, written - for_an_hour, counts["output_tokens"])
