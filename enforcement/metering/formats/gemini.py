"""Gemini's generateContent and streamGenerateContent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl

from enforcement.metering.formats.reading import (
    AnswerReader,
    Asked,
    NotBelieved,
    UnreadableRequest,
    count_in,
    some_in,
)
from enforcement.metering.formats.text import Content, as_list, as_object, length_within, objects_in, utf8_length
from enforcement.metering.usage import Usage
from enforcement.model.checks import shown

_COUNTS: Final = (
    "promptTokenCount",
    "cachedContentTokenCount",
    "toolUsePromptTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
)
# Fields that say something about the part that they stand in.
_REMARKS: Final = frozenset(
    (
        "thought",
        "thoughtSignature",
        "thought_signature",
        "videoMetadata",
        "video_metadata",
        "mediaResolution",
        "media_resolution",
    )
)
_SCHEMAS: Final = ("responseSchema", "response_schema", "responseJsonSchema", "response_json_schema")
_DECLARATIONS: Final = frozenset(("functionDeclarations", "function_declarations"))
_ALTS: Final = frozenset(("json", "sse"))
# With a dollar sign, Google's APIs also take header fields, the method and the body from the query.
_PLAIN_DOLLARS: Final = frozenset(("alt", ".xgafv", "prettyPrint"))
# Header fields that ask for a part of an answer, and for one in base64.
_CHANGING_ANSWER: Final = ("x-goog-fieldmask", "x-goog-encode-response-if-executable")
_MEDIA: Final = frozenset(("image", "audio", "video"))


def ask_gemini(body: dict[str, Any]) -> Asked:
    """Return what a request for content asks for. REST takes each name also with underscores."""
    asked = Asked()
    for name in ("generationConfig", "generation_config"):
        config = body.get(name)
        if config is not None:
            _read_config(asked, config, name)
    content = asked.content
    for turn in objects_in(body.get("contents")):
        _add_parts(content, turn)
    for name in ("systemInstruction", "system_instruction"):
        said = body.get(name)
        content.add_text(said)
        _add_parts(content, as_object(said))
    content.add_within(body.get("tools"))
    for tool in objects_in(body.get("tools")):
        for name in tool.keys() - _DECLARATIONS:
            content.has_no_bound(f"the provider may run the tool {shown(name)}, whose results the model reads")
    content.keeps_context = any(body.get(name) is not None for name in ("cachedContent", "cached_content"))
    only_snake = body.get("generationConfig") is None and body.get("generation_config") is not None
    asked.default_field = f"/{'generation_config' if only_snake else 'generationConfig'}/maxOutputTokens"
    return asked


def hides_usage(query: str, header: Callable[[str], str | None]) -> bool:
    """
    Return whether a request asks for an answer in which no usage can be read.

    Args:
        query: The query of the request. Google's APIs take ``alt`` for the format of the answer, ``fields`` for a part
            of it, and ``callback`` for a script around it, each also with a dollar sign before it.
        header: Return the value of the header field with a name in lower case, or None.
    """
    if any(header(name) is not None for name in _CHANGING_ANSWER):
        return True
    return any(_changes_answer(name, value) for name, value in parse_qsl(query, keep_blank_values=True))


def _changes_answer(name: str, value: str) -> bool:
    plain = name.removeprefix("$")
    if plain == "alt":
        return value not in _ALTS
    return plain in ("fields", "callback") or (plain != name and plain not in _PLAIN_DOLLARS)


def _read_config(asked: Asked, config: Any, name: str) -> None:
    if type(config) is not dict:
        raise UnreadableRequest("bad_cap")  # no cap could be read from it or written into it
    asked.read_caps(config, f"/{name}", "maxOutputTokens", "max_output_tokens")
    asked.read_choices(config, "candidateCount", "candidate_count")
    for schema in _SCHEMAS:
        asked.content.add_within(config.get(schema))


def _add_parts(content: Content, turn: dict[str, Any]) -> None:
    for part in objects_in(turn.get("parts")):
        for name, value in part.items():
            _add_field(content, name, value)


def _add_field(content: Content, name: str, value: Any) -> None:
    """Count what one field of a part says. A part has one such field, beside remarks."""
    if name == "text":
        content.add_text(value)
    elif name in _REMARKS:
        return
    elif name in ("functionCall", "function_call"):
        call = as_object(value)
        content.add_text(call.get("name"))
        content.add_within(call.get("args"))
    elif name in ("functionResponse", "function_response"):
        content.add_within(as_object(value).get("response"))
        _add_parts(content, as_object(value))
    elif name in ("inlineData", "inline_data", "fileData", "file_data"):
        content.add_part(_kind_of(as_object(value)), value)
    elif name in ("executableCode", "executable_code"):
        content.add_text(as_object(value).get("code"))
    elif name in ("codeExecutionResult", "code_execution_result"):
        content.add_text(as_object(value).get("output"))
    else:
        content.add_part("other", value)


def _kind_of(data: dict[str, Any]) -> str:
    media_type = data.get("mimeType", data.get("mime_type"))
    kind = media_type.partition("/")[0].lower() if type(media_type) is str else ""
    return kind if kind in _MEDIA else "file"


class GeminiAnswer(AnswerReader):
    """An answer with content. Each chunk of a stream repeats the whole usage so far."""

    def __init__(self) -> None:
        super().__init__()
        self.has_finished = False

    def read_body(self, body: dict[str, Any]) -> None:
        self.read_event(body)
        self.is_final = self.usage is not None

    def read_event(self, event: dict[str, Any]) -> None:
        self.take_model(event.get("modelVersion"))
        candidates = objects_in(event.get("candidates"))
        for candidate in candidates:
            for part in objects_in(as_object(candidate.get("content")).get("parts")):
                self.text_bytes += _length_of(part)
                if "thought" in part or "thoughtSignature" in part:
                    self.hides_output = True
        self.calls = max(self.calls, sum(map(_searches_of, candidates)))
        finished = any(candidate.get("finishReason") is not None for candidate in candidates)
        blocked = as_object(event.get("promptFeedback")).get("blockReason") is not None
        self.has_finished = self.has_finished or finished or blocked
        if some_in(as_object(event.get("usageMetadata")), "thoughtsTokenCount"):
            self.hides_output = True
        if self.take_usage(_usage_of(event.get("usageMetadata"))):
            self.is_final = self.has_finished

    def end(self) -> None:
        self.is_final = self.usage is not None


def _searches_of(candidate: dict[str, Any]) -> int:
    """Return how many searches of the web an answer is grounded on."""
    grounding = candidate.get("groundingMetadata")
    return 0 if grounding is None else len(as_list(as_object(grounding).get("webSearchQueries")))


def _length_of(part: dict[str, Any]) -> int:
    said = utf8_length(part.get("text"))
    if len(part) == 1 and "text" in part:
        return said
    call = as_object(part.get("functionCall"))
    said += utf8_length(call.get("name")) + length_within(call.get("args"))
    said += utf8_length(as_object(part.get("executableCode")).get("code"))
    return said + utf8_length(as_object(part.get("codeExecutionResult")).get("output"))


def _usage_of(report: Any) -> Usage | None:
    if type(report) is not dict:
        return None
    try:
        found = [count_in(report, name) for name in _COUNTS]
    except NotBelieved:
        return None
    if all(count is None for count in found):
        return None
    prompt, cached, tools, candidates, thoughts = (count or 0 for count in found)
    cached = min(cached, prompt)
    return Usage(prompt - cached + tools, cached, 0, candidates + thoughts, other_rates=_has_sound(report))


def _has_sound(report: dict[str, Any]) -> bool:
    details = objects_in(report.get("promptTokensDetails")) + objects_in(report.get("candidatesTokensDetails"))
    return any(one.get("modality") == "AUDIO" and some_in(one, "tokenCount") for one in details)
