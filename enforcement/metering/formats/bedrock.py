"""Amazon Bedrock's Converse, and its Invoke with the formats of the models themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from enforcement.metering.amounts import MAX_COUNT, Usage
from enforcement.metering.formats.anthropic import MessagesAnswer, ask_message
from enforcement.metering.formats.cohere import CohereAnswer, ask_cohere_chat
from enforcement.metering.formats.openai import ChatAnswer, ask_chat
from enforcement.metering.formats.reading import (
    AnswerReader,
    Asked,
    NotBelieved,
    Split,
    UnreadableRequest,
    by_modality,
    usage_with,
    whole_count_in,
)
from enforcement.metering.formats.text import (
    PROMPT_TOKENS,
    Content,
    as_list,
    as_object,
    length_within,
    objects_in,
    utf8_length,
)

# The names of models for their own caps, which Converse may pass on to them, or not.
_CAPS: Final = ("maxTokens", "max_new_tokens", "max_tokens", "max_completion_tokens", "max_gen_len")
_ADDITIONAL: Final = "additionalModelRequestFields"
_MEDIA: Final = {"image": "image", "video": "video", "audio": "audio", "document": "file"}
_EMBEDDING: Final = ("dimensions", "normalize", "embeddingTypes")
_OF_CONVERSE: Final = ("inferenceConfig", "schemaVersion", "toolConfig")
# Caps of the models that read one prompt, none of which takes all of these names.
_PROMPT_CAPS: Final = ("max_gen_len", "max_tokens", "max_tokens_to_sample", "maxTokens")
_CONVERSE_EVENTS: Final = frozenset(
    (
        *("messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata"),
        *("output", "usage", "stopReason"),
    )
)
_METRICS: Final = "amazon-bedrock-invocationMetrics"
_HEAD: Final = "x-amzn-bedrock-{}-token-count"
_HEAD_NAMES: Final = ("input", "output", "cache-read-input", "cache-write-input")
_WHY: Final = ("stop_reason", "completionReason", "finish_reason", "embedding")
_SAID: Final = ("outputText", "generation", "completion", "text")


def ask_converse(body: dict[str, object]) -> Asked:
    """
    Return what a request to Converse asks for. Only ``maxTokens`` is a cap there. If it is missing, the greatest cap
    with another name is written under it, because the model may not know that name.
    """
    asked = ask_native(body)
    asked.writes_cap = True
    return asked


def ask_native(body: dict[str, object]) -> Asked:
    """Return what a request to Invoke asks for in the format of Amazon's own models, which is like Converse."""
    asked = Asked(default_field="/inferenceConfig/maxTokens")
    _read_caps(asked, body, "inferenceConfig")
    asked.writes_cap = "/inferenceConfig/max_new_tokens" not in asked.cap_fields  # which Amazon's first models have
    additional = body.get(_ADDITIONAL)
    if additional is not None:
        # They are passed on to the model, which may take a cap from here.
        _read_caps(asked, body, _ADDITIONAL)
        if as_object(additional).get("inferenceConfig") is not None:
            _read_caps(asked, as_object(additional), "inferenceConfig", f"/{_ADDITIONAL}")
    asked.refuse_no_cap()
    content = asked.content
    for block in objects_in(body.get("system")):
        _add_block(content, block)
    for message in objects_in(body.get("messages")):
        for block in objects_in(message.get("content")):
            _add_block(content, block)
    tools = as_object(body.get("toolConfig"))
    for tool in objects_in(tools.get("tools")):
        content.add_within(tool.get("toolSpec"))
        content.tools += "toolSpec" in tool
        if not tool.keys() & {"toolSpec", "cachePoint"}:
            content.add_own_tool(next(iter(tool), ""))
            content.has_no_bound("the provider may run a tool, whose results the model reads")
    content.add_within(body.get("outputConfig"))
    content.add_searches(as_object(additional), "tools", "mcp_servers", "container", "context_management")
    content.keeps_context = body.get("promptVariables") is not None
    if tools or body.get("outputConfig"):
        content.added_tokens = PROMPT_TOKENS
    return asked


def _read_caps(asked: Asked, body: dict[str, object], name: str, parent: str = "") -> None:
    config = body.get(name)
    if config is None:
        return
    if type(config) is not dict:
        raise UnreadableRequest("bad_cap")  # no cap could be read from it or written into it
    asked.read_caps(config, f"{parent}/{name}", *_CAPS)


def _add_block(content: Content, block: dict[str, object]) -> None:
    """Count what a block says. It has one field that says what it is."""
    for name, value in block.items():
        inner = as_object(value)
        if name == "text":
            content.add_text(value)
        elif name in _MEDIA:
            _add_media(content, _MEDIA[name], inner)
        elif name == "toolUse":
            content.add_text(inner.get("name"))
            content.add_within(inner.get("input"))
        elif name in ("toolResult", "citationsContent", "searchResult"):
            _add_citing(content, inner)
            for one in objects_in(inner.get("content")):
                _add_block(content, one)
        elif name == "guardContent":
            content.add_text(as_object(inner.get("text")).get("text"))
            if inner.get("image") is not None:
                content.add_part("image", inner)
        elif name == "reasoningContent":
            content.add_text(as_object(inner.get("reasoningText")).get("text"))
        elif name == "json":
            content.add_within(value)
        elif name not in ("cachePoint", "role", "type"):
            content.add_part("other", block)


def _add_citing(content: Content, cited: dict[str, object]) -> None:
    """Note that the provider says how to cite, if a document or a result of a search is to be cited."""
    if as_object(cited.get("citations")).get("enabled"):
        content.added_tokens = PROMPT_TOKENS


def _add_media(content: Content, kind: str, media: dict[str, object]) -> None:
    source = as_object(media.get("source"))
    _add_citing(content, media)
    content.add_text(media.get("name"))
    content.add_text(media.get("context"))
    if type(source.get("text")) is str:
        content.add_text(source["text"])
    elif type(source.get("content")) is list:
        content.add_within(source["content"])
    else:
        content.add_part(kind, media)


def ask_invoke(body: dict[str, object]) -> Asked:
    """Return what a request to Invoke asks for, in the format of its model."""
    return _ASK_INVOKE[invoke_format(body)](body)


def invoke_format(body: dict[str, object]) -> str:
    """
    Return the format that a request to Invoke has: ``bedrock-titan`` and ``bedrock-prompt`` for models with one prompt,
    or the name of an API with the same format.
    """
    messages = body.get("messages")
    if body.get("anthropic_version") is not None and (type(messages) is list or type(body.get("prompt")) is not str):
        return "anthropic-messages"
    if type(messages) is list:
        return "bedrock-converse" if _has(body, _OF_CONVERSE) or _has_untyped_blocks(messages) else "openai-chat"
    if type(body.get("message")) is str:
        return "cohere-chat-v1"
    if body.get("inputText") is not None:
        return "bedrock-embeddings" if _has(body, _EMBEDDING) else "bedrock-titan"
    return "bedrock-prompt" if type(body.get("prompt")) is str else "bedrock-embeddings"


def _has(body: dict[str, object], names: Iterable[str]) -> bool:
    """Return whether a request has one of these fields. A null is as good as none."""
    return any(body.get(name) is not None for name in names)


def _ask_chat(body: dict[str, object]) -> Asked:
    asked = ask_chat(body)
    asked.default_field = "/max_tokens"
    return asked


def _has_untyped_blocks(messages: list[object]) -> bool:
    blocks = [block for message in objects_in(messages) for block in objects_in(message.get("content"))]
    return any("type" not in block for block in blocks)


def _ask_titan(body: dict[str, object]) -> Asked:
    asked = Asked(default_field="/textGenerationConfig/maxTokenCount")
    asked.content.add_text(body["inputText"])
    config = body.get("textGenerationConfig")
    if config is not None:
        if type(config) is not dict:
            raise UnreadableRequest("bad_cap")
        asked.read_caps(config, "/textGenerationConfig", "maxTokenCount")
        asked.refuse_no_cap()
    return asked


def _ask_prompt(body: dict[str, object]) -> Asked:
    asked = Asked()
    asked.read_caps(body, "", *_PROMPT_CAPS)
    asked.refuse_no_cap()
    asked.content.add_text(body["prompt"])
    for image in as_list(body.get("images")):
        asked.content.add_part("image", {"data": image})
    if asked.cap is None:
        asked.content.has_no_bound("the request names no cap, and nobody knows by what name its model takes one")
    return asked


def ask_bedrock_embedding(body: dict[str, object]) -> Asked:
    """Return what a request to Invoke for embeddings asks for. Nothing is generated."""
    asked, content = Asked(cap=0), Asked().content
    asked.content = content
    content.add_text(body.get("inputText"))
    content.add_tokens_or_text(body.get("texts"))
    for image in [*as_list(body.get("images")), *([body["inputImage"]] if _has(body, ("inputImage",)) else [])]:
        content.add_part("image", {"data": image})
    for one in objects_in(body.get("inputs")):
        content.add_blocks(one.get("content"))
    params = as_object(body.get("singleEmbeddingParams"))
    content.add_text(as_object(params.get("text")).get("value"))
    for kind in ("image", "audio", "video"):
        if params.get(kind) is not None:
            content.add_part(kind, params[kind])
    if not body.keys() & {"inputText", "texts", "images", "inputImage", "inputs", "singleEmbeddingParams"}:
        raise UnreadableRequest("format")
    return asked


_ASK_INVOKE: Final[Mapping[str, Callable[[dict[str, object]], Asked]]] = {
    "anthropic-messages": ask_message,
    "bedrock-converse": ask_native,
    "bedrock-embeddings": ask_bedrock_embedding,
    "bedrock-prompt": _ask_prompt,
    "bedrock-titan": _ask_titan,
    "cohere-chat-v1": ask_cohere_chat,
    "openai-chat": _ask_chat,
}


class ConverseAnswer(AnswerReader):
    """An answer of Converse. An event has its type as the only key. Its last one has the usage."""

    frames = True

    def read_body(self, body: dict[str, object]) -> None:
        for block in objects_in(as_object(as_object(body.get("output")).get("message")).get("content")):
            self._read_block(block)
        self._take_end(body)

    def read_event(self, event: dict[str, object]) -> None:
        for name, value in event.items():
            inner = as_object(value)
            if name == "contentBlockDelta":
                self._read_block(as_object(inner.get("delta")))
            elif name == "contentBlockStart":
                self._read_block(as_object(inner.get("start")))
            elif name == "metadata":
                self._take_end(inner)

    def end(self) -> None:
        """Do nothing, since the last event has the last word."""

    def _read_block(self, block: dict[str, object]) -> None:
        for name, value in block.items():
            if name == "text":
                self.text_bytes += utf8_length(value)
            elif name in ("toolUse", "reasoningContent"):
                inner = as_object(value)
                self.text_bytes += sum(length_within(inner.get(one)) for one in ("name", "input", "text"))
                self.text_bytes += utf8_length(as_object(inner.get("reasoningText")).get("text"))

    def _take_end(self, end: dict[str, object]) -> None:
        self.take_modifier("service_tier", as_object(end.get("serviceTier")).get("type"))
        self.take_modifier("latency", as_object(end.get("performanceConfig")).get("latency"))
        if as_object(end.get("trace")).get("guardrail"):
            self.other_rates = True
        report = as_object(end.get("usage"))
        if any(type(uses) is int and uses > 0 for uses in as_object(report.get("serverToolUsage")).values()):
            self.other_rates = True
        if self.take_usage(_converse_usage(report)):
            self.is_final = report.get("outputTokens") is not None


def _converse_usage(report: dict[str, object]) -> Usage | None:
    try:
        fresh, output = whole_count_in(report, "inputTokens"), whole_count_in(report, "outputTokens")
        read = whole_count_in(report, "cacheReadInputTokens", "cacheReadInputTokenCount") or 0
        written = whole_count_in(report, "cacheWriteInputTokens", "cacheWriteInputTokenCount") or 0
    except NotBelieved:
        return None
    if fresh is None:
        return None
    split = Split(written)
    more = {"cache_write_1h": split.take(by_modality(report.get("cacheDetails"), "ttl", "inputTokens").get("1h"))}
    return usage_with(more, fresh, read, split.left, output or 0)


class PromptAnswer(AnswerReader):
    """An answer of a model that reads one prompt, or of one that makes embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self._input: int | None = None
        self._output: int | None = None

    def read_body(self, body: dict[str, object]) -> None:
        self.has_finished = True
        self.read_event(body)

    def read_event(self, event: dict[str, object]) -> None:
        results = [event, *objects_in(event.get("results")), *objects_in(event.get("outputs"))]
        for one in results:
            self.text_bytes += sum(utf8_length(one.get(name)) for name in _SAID)
            # Each event of a stream counts the tokens so far.
            self.has_finished = self.has_finished or any(one.get(name) is not None for name in _WHY)
        try:
            found = whole_count_in(event, "inputTextTokenCount", "prompt_token_count")
            said = whole_count_in(event, "totalOutputTextTokenCount", "generation_token_count")
            parts = [whole_count_in(result, "tokenCount") for result in results[1:]]
        except NotBelieved:
            return
        self._input = self._input if found is None else found
        if said is None and "embedding" in event:
            said = 0
        elif said is None and parts and None not in parts:
            said = min(sum(part or 0 for part in parts), MAX_COUNT)
        self._output = self._output if said is None else said
        if self._input is not None and self.take_usage(Usage(self._input, 0, 0, self._output or 0)):
            self.is_final = self.has_finished and self._output is not None

    def end(self) -> None:
        """Do nothing, since the last event says why it is the last."""


class InvokeAnswer(AnswerReader):
    """
    An answer of Invoke, in the format of its model.

    If that format reports no usage, the provider does: in header fields, and in the last event of a stream.
    """

    reads_head = True
    frames = True

    def __init__(self) -> None:
        super().__init__()
        self._inner: AnswerReader | None = None
        self._inner_text = 0
        self._head: Usage | None = None

    def read_head(self, header: Callable[[str], str | None]) -> None:
        fresh, output, read, written = (_count_of(header(_HEAD.format(name))) for name in _HEAD_NAMES)
        if fresh is not None:
            self._head = Usage(fresh, read or 0, written or 0, output or 0)

    def read_body(self, body: dict[str, object]) -> None:
        inner = self._reader_for(body)
        inner.read_body(body)
        if body.get("amazon-bedrock-trace"):
            self.other_rates = True  # guardrails have fees of their own
        self._take(inner)
        if not self.is_final and self._head is not None and self.take_usage(self._head):
            self.is_final = True

    def read_event(self, event: dict[str, object]) -> None:
        inner = self._reader_for(event)
        inner.read_event(event)
        if "amazon-bedrock-guardrailAction" in event:
            self.other_rates = True
        self._take(inner)
        metrics = event.get(_METRICS)
        if not self.is_final and type(metrics) is dict and self.take_usage(_metrics_usage(metrics)):
            self.is_final = True

    def end(self) -> None:
        if self._inner is not None:
            self._inner.has_failed = self._inner.has_failed or self.has_failed
            self._inner.end()
            self._take(self._inner)

    def _reader_for(self, value: dict[str, object]) -> AnswerReader:
        if self._inner is None:
            self._inner = _reader_of(value)()
        return self._inner

    def blank(self) -> AnswerReader:
        answer_reader = InvokeAnswer()
        answer_reader._inner = None if self._inner is None else self._inner.blank()
        return answer_reader

    def only_added_text(self, *, reports: bool = False) -> bool:
        inner = self._inner
        if inner is None or not inner.only_added_text(reports=reports):
            return False
        return self.other_rates == inner.other_rates and not self.is_final and (reports or self.usage is None)

    def _take(self, inner: AnswerReader) -> None:
        """Take what the reader of the model's format has read. Events that repeat others are not read by it."""
        self.text_bytes += inner.text_bytes - self._inner_text
        self._inner_text = inner.text_bytes
        self.model, self.calls = inner.model, inner.calls
        self.more, self.other_rates = inner.more, self.other_rates or inner.other_rates
        if inner.usage is not None and not self.is_final:
            self.take_usage(inner.usage)
            self.is_final = inner.is_final


def _reader_of(value: dict[str, object]) -> Callable[[], AnswerReader]:
    kind = value.get("type")
    if type(kind) is str and kind.startswith(("message", "content_block")):
        return MessagesAnswer
    if value.keys() & _CONVERSE_EVENTS and "choices" not in value:
        return ConverseAnswer
    if "choices" in value:
        return ChatAnswer
    return CohereAnswer if value.keys() & {"response_id", "generation_id", "event_type"} else PromptAnswer


def _metrics_usage(metrics: dict[str, object]) -> Usage | None:
    return _converse_usage(
        {
            "inputTokens": metrics.get("inputTokenCount"),
            "outputTokens": metrics.get("outputTokenCount"),
            "cacheReadInputTokens": metrics.get("cacheReadInputTokenCount"),
            "cacheWriteInputTokens": metrics.get("cacheWriteInputTokenCount"),
        }
    )


def _count_of(text: str | None) -> int | None:
    """Return the count that a header field says, or None if it is none."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 9 else None
