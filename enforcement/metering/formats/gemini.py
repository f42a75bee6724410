"""Gemini's generateContent and streamGenerateContent."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl, unquote

from enforcement.metering.amounts import Usage
from enforcement.metering.body import DUPLICATE_KEY
from enforcement.metering.formats.reading import (
    AnswerReader,
    Asked,
    NotBelieved,
    Split,
    UnreadableRequest,
    by_modality,
    count_in,
    usage_with,
)
from enforcement.metering.formats.text import (
    PROMPT_TOKENS,
    Content,
    as_list,
    as_object,
    length_within,
    objects_in,
    objects_of,
    utf8_length,
)
from enforcement.model.checks import shown

_COUNTS: Final = (
    "promptTokenCount",
    "cachedContentTokenCount",
    "toolUsePromptTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
)
_DETAILS: Final = ("promptTokensDetails", "promptTokenDetails", "cacheTokensDetails", "candidatesTokensDetails")
_MEDIA_CLASSES: Final = ("audio", "image", "video")
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
_MAY_MOVE: Final = re.compile("octet-stream|mp4|ogg|mpeg|x-mpeg|vnd.apple.mpegurl")  # what may be a video
_VIDEOS: Final = re.compile("youtu[.]?be", re.IGNORECASE)  # whose addresses are videos, whatever type they have
_VERSION: Final = re.compile(r"gemini-(\d{1,3})\b", re.ASCII)


def ask_gemini(body: dict[str, object]) -> Asked:
    """Return what a request for content asks for. REST takes each name also with underscores."""
    asked = Asked()
    _refuse_both(body, "generationConfig", "generation_config")
    for name in ("generationConfig", "generation_config"):
        config = body.get(name)
        if config is not None:
            _read_config(asked, config, name)
    content = asked.content
    asked.refuse_no_cap()
    for turn in objects_of(body.get("contents")):
        add_parts(content, turn)
    for name in ("systemInstruction", "system_instruction"):
        said = body.get(name)
        content.add_text(said)
        add_parts(content, as_object(said))
    content.add_schema(body.get("tools"))
    for tool in objects_of(body.get("tools")):
        content.tools += sum([len(objects_of(tool.get(name))) for name in _DECLARATIONS])
        for name in tool.keys() - _DECLARATIONS:
            content.add_own_tool(name)
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


def _read_config(asked: Asked, config: object, parent: str) -> None:
    if type(config) is not dict:
        raise UnreadableRequest("bad_cap")  # no cap could be read from it or written into it
    asked.read_caps(config, f"/{parent}", "maxOutputTokens", "max_output_tokens")
    asked.read_choices(config, "candidateCount", "candidate_count")
    for schema in _SCHEMAS:
        asked.content.add_schema(config.get(schema))
    for name in ("responseMimeType", "response_mime_type"):
        if config.get(name) not in (None, "", "text/plain"):
            asked.content.added_tokens = PROMPT_TOKENS


def add_parts(content: Content, turn: dict[str, object]) -> None:
    """Count the parts of one turn of a conversation."""
    for part in objects_of(turn.get("parts")):
        for name, value in part.items():
            _add_field(content, name, value)


def _add_field(content: Content, name: str, value: object) -> None:
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
        content.add_text(as_object(value).get("name"))
        content.add_within(as_object(value).get("response"))
        add_parts(content, as_object(value))
    elif name in ("inlineData", "inline_data", "fileData", "file_data"):
        content.add_part(_kind_of(as_object(value)), value)
    elif name in ("executableCode", "executable_code"):
        content.add_text(as_object(value).get("code"))
    elif name in ("codeExecutionResult", "code_execution_result"):
        content.add_text(as_object(value).get("output"))
    else:
        content.add_part("other", value)


def _kind_of(data: dict[str, object]) -> str:
    """Return the kind of a file by its type of media. Without one it may be a video, say, by its address."""
    _refuse_both(data, "mimeType", "mime_type")
    if any(_VIDEOS.search(unquote(str(data.get(name)))) for name in ("fileUri", "file_uri")):
        return "video"
    media_type = data.get("mimeType", data.get("mime_type"))
    kind, _, rest = media_type.lower().partition("/") if type(media_type) is str else ("", "", "")
    if kind in _MEDIA:
        return kind
    return "file" if kind in ("text", "application") and rest and not _MAY_MOVE.match(rest) else "other"


def _refuse_both(value: dict[str, object], camel: str, snake: str) -> None:
    """Raise UnreadableRequest if an object has both spellings of a name, of which a server takes one."""
    if camel in value and snake in value:
        raise UnreadableRequest(DUPLICATE_KEY)


class GeminiAnswer(AnswerReader):
    """An answer with content. Each chunk of a stream repeats the whole usage so far."""

    def __init__(self) -> None:
        super().__init__()
        self._queries: set[str] = set()

    def read_body(self, body: dict[str, object]) -> None:
        self.read_event(body)
        self.is_final = self.usage is not None

    def read_event(self, event: dict[str, object]) -> None:
        self.take_model(event.get("modelVersion"))
        candidates = objects_in(event.get("candidates"))
        for candidate in candidates:
            for part in objects_in(as_object(candidate.get("content")).get("parts")):
                self.text_bytes += _length_of(part)
                if "thought" in part or "thoughtSignature" in part:
                    self.hides_output = True
            if "groundingMetadata" in candidate:
                self._read_grounding(as_object(candidate["groundingMetadata"]))
        finished = any(candidate.get("finishReason") is not None for candidate in candidates)
        blocked = as_object(event.get("promptFeedback")).get("blockReason") is not None
        self.has_finished = self.has_finished or finished or blocked
        if event.get("error") is not None:
            self.has_failed, self.is_final = True, False
        report = event.get("usageMetadata")
        if type(report) is dict:
            self.hides_output = self.hides_output or bool(report.get("thoughtsTokenCount"))
            self.take_modifier("traffic_type", report.get("trafficType"))
            self.take_modifier("service_tier", report.get("serviceTier"))
            if self.take_usage(usage_of(report)):
                # If there are several candidates, the first may be complete long before the last.
                self.is_final = self.has_finished and not self.has_failed and self.answers == 1

    def _read_grounding(self, grounding: dict[str, object]) -> None:
        """Count searches of the web. Empty queries and those that were asked before have no fee."""
        queries = as_list(grounding.get("webSearchQueries"))
        self._queries |= {query for query in queries if type(query) is str and query.strip()}
        matched = _VERSION.search(self.model or "")
        # Until version 2, a prompt has one fee, however many searches it leads to.
        self.calls = min(1, len(self._queries)) if matched and int(matched[1]) < 3 else len(self._queries)
        if any("maps" in chunk for chunk in objects_in(grounding.get("groundingChunks"))):
            self.other_rates = True

    def end(self) -> None:
        self.end_running()


def _length_of(part: dict[str, object]) -> int:
    said = utf8_length(part.get("text"))
    if len(part) == 1 and "text" in part:
        return said
    call = as_object(part.get("functionCall"))
    said += utf8_length(call.get("name")) + length_within(call.get("args"))
    said += utf8_length(as_object(part.get("executableCode")).get("code"))
    return said + utf8_length(as_object(part.get("codeExecutionResult")).get("output"))


def _is_text(details: object) -> bool:
    """Return whether details by modality are missing or name nothing but text, as in most answers."""
    return details is None or (
        type(details) is list and all(type(detail) is dict and detail.get("modality") == "TEXT" for detail in details)
    )


def usage_of(report: dict[str, object]) -> Usage | None:
    """Return the usage that a report says, or None if it says none or is not believed."""
    try:
        found = [count_in(report, name) for name in _COUNTS]
    except NotBelieved:
        return None
    if all(count is None for count in found):
        return None
    prompt, cached, tools, candidates, thoughts = (count or 0 for count in found)
    cached = min(cached, prompt)
    details = [report.get(name) for name in _DETAILS]
    if all(map(_is_text, details)):
        return Usage(prompt - cached + tools, cached, 0, candidates + thoughts)
    read, read_for_embedding, reread, said = map(by_modality, details)
    read = read or read_for_embedding
    fresh, from_cache, output = Split(prompt - cached), Split(cached), Split(candidates)
    more = {"cached_audio": from_cache.take(reread.get("audio"))}
    for kind in _MEDIA_CLASSES:
        more[f"input_{kind}"] = fresh.take(max(0, read.get(kind, 0) - reread.get(kind, 0)))
    more |= {"output_image": output.take(said.get("image")), "output_audio": output.take(said.get("audio"))}
    return usage_with(more, fresh.left + tools, from_cache.left, 0, output.left + thoughts)
