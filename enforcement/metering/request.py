"""Read from a request to a provider what it may cost, and prepare the body that is sent on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from enforcement.metering import body as json_body
from enforcement.metering.formats.anthropic import ask_message
from enforcement.metering.formats.bedrock import ask_bedrock_embedding, ask_converse, ask_invoke
from enforcement.metering.formats.cohere import ask_cohere_chat, ask_cohere_embedding, ask_cohere_messages
from enforcement.metering.formats.gemini import ask_gemini, hides_usage
from enforcement.metering.formats.gemini_embeddings import ask_gemini_embedding
from enforcement.metering.formats.images import ask_image
from enforcement.metering.formats.openai import ask_chat, ask_completion, ask_embedding
from enforcement.metering.formats.reading import Asked, UnreadableRequest
from enforcement.metering.formats.responses import ask_compaction, ask_response
from enforcement.metering.formats.routes import ENDS_COUNTING, Route, find_route, resembles_route, unread_door
from enforcement.metering.formats.text import (
    NO_TOOLS,
    as_object,
    growth_within,
    is_encodable,
    length_within,
    model_name,
)
from enforcement.metering.lookalikes import TOOL_CALL, begins_as_json, calls_tool, is_misspelled, is_plain_call
from enforcement.metering.modalities import produced_classes
from enforcement.metering.reasoning import asks_for_reasoning, is_reasoning_model

MAX_BODY: Final = 8 * 1024 * 1024
"""Bytes of the longest body of a request that is read, unless a caller says otherwise."""

MAX_SESSION_LENGTH: Final = 128
"""Longest name of a session, in characters."""

MCP: Final = "mcp"
"""Format of a call of the Model Context Protocol. It has no tokens."""

FURTHER_MODELS: Final = frozenset(
    ("models", "fallbacks", "fallback_models", "context_window_fallbacks", "content_policy_fallbacks")
)
"""Fields by which routers between here and the provider take other models, if the first one fails or is slow."""

_ASK: Final[Mapping[str, Callable[[dict[str, object]], Asked]]] = {
    "openai-chat": ask_chat,
    "openai-responses": ask_response,
    "openai-completions": ask_completion,
    "openai-embeddings": ask_embedding,
    "anthropic-messages": ask_message,
    "gemini": ask_gemini,
    "gemini-embeddings": ask_gemini_embedding,
    "openai-compact": ask_compaction,
    "openai-images": ask_image,
    "bedrock-converse": ask_converse,
    "bedrock-invoke": ask_invoke,
    "bedrock-embeddings": ask_bedrock_embedding,
    "cohere-chat-v1": ask_cohere_chat,
    "cohere-chat-v2": ask_cohere_messages,
    "cohere-embed": ask_cohere_embedding,
}
_CHARSET: Final = re.compile(r"charset\s*=\s*[\"']?([^\s;,\"']*)", re.IGNORECASE)
# Character sets in which the structure of JSON has the same bytes as in UTF-8.
_LIKE_UTF8: Final = frozenset(("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin1", "latin-1", "windows-1252"))
# Google's paths for the chat completions of OpenAI.
_OF_GOOGLE: Final = re.compile("/v1(?:beta|alpha)?/openai/|/endpoints/[^/]+/")
# Formats whose streams report usage only if they are asked to.
_REPORT_ON_REQUEST: Final = frozenset({"openai-chat", "openai-completions"})
_FLAGS: Final = (bool, type(None))
_INCLUDE_USAGE: Final = "/stream_options/include_usage"
# Header fields that raise a price, after the modifier that each is, and their values that do not.
_BEDROCK_HEAD: Final = (
    ("service_tier", "x-amzn-bedrock-service-tier"),
    ("latency", "x-amzn-bedrock-performanceconfig-latency"),
)
_WITH_MODIFIERS: Final = ("bedrock", "gemini")
_VERTEX_HEAD: Final = (("service_tier", "x-vertex-ai-llm-shared-request-type"),)
_USUAL: Final = frozenset(("", "default", "standard", "flex", "reserved"))
_JSON: Final = "application/json"

Header = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Unmetered:
    """
    A request that no meter can read. What it gets is for the policy to say.

    Attributes:
        reason: The first that holds of ``method``, ``encoding``, ``too_large``, ``format``, ``duplicate_key``,
            ``invalid_json``, ``not_an_object``, ``bad_query``, ``charset``, ``no_model``, ``bad_stream``, ``bad_cap``,
            ``bad_n`` and ``batch``, which is also that of a request that names several models.
        format: The format that its path names; None if it names none.
        is_lookalike: Another program may find a request to a provider in it, or a call of a tool, although the reason
            is ``format`` or ``websocket``.
        door: What its path offers that no meter reads, such as ``batches``, if the reason is ``format``.
    """

    reason: str
    format: str | None = None
    is_lookalike: bool = False
    door: str = ""


class Parsed(NamedTuple):
    """
    The body of a request, as it was read.

    Attributes:
        value: Its JSON value.
        media: Its parts that are no text, each after its kind.
        has_marks: Whether it marks what the provider writes to a cache.
        growth: How many characters more its numbers have if the provider writes them without exponents.
    """

    value: dict[str, object]
    media: list[tuple[str, object]]
    has_marks: bool
    growth: int = 0


@dataclass(slots=True)
class MeteredRequest:
    """
    A request whose cost can be estimated.

    It never changes, but for *parsed* and *shipped*. The class is not frozen, because creating a frozen instance takes
    four times as long.

    Attributes:
        format: The API format, such as ``openai-chat``. A request of the format ``mcp`` has no tokens at all: for
            limits on tokens or money it is unmetered.
        body: The body to send on: the one that came, with *changes*.
        attributes: What limits may match: ``model``, ``stream`` ("true" or "false"), ``session``, ``tool``.
        cap: Most tokens of each answer; None if neither the request nor the caller names one.
        n: How many answers are generated. Output is reserved for *cap* times *n*.
        text_bytes: Bytes of UTF-8 of all text that the model has to read.
        parts: The number of parts that are no text, by kind: image, audio, video, file, other.
        changes: What was written into the body, by JSON pointer.
        hide_usage: The stream was asked for usage only by us: its event is to be hidden from the client.
        keeps_context: The model also reads what the provider keeps, and the request does not say how much that is.
        is_background: The provider goes on generating after its answer, unless that is a stream that comes to its end.
        cap_fields: JSON pointers of all caps in *body*.
        default_field: JSON pointer of the field for a cap; None if nothing is generated that a cap could bound.
        media_bytes: Bytes of the strings in *body* that are the data of *parts*, or the addresses of their data.
        objects: The number of JSON objects in *body*, which messages, parts and tools are.
        added_tokens: The most tokens that the provider adds by itself, beside those around each message.
        unbounded: Why the model may read more than the request says, as a clause. Empty: it does not.
        tool_models: The models of the provider's tools that the request may use, by tool.
        modifiers: What header fields ask for that raises the price, such as ``service_tier=priority``.
        tools: How many tools it offers that the client runs. 0 if it forbids the model to call them.
        own_tools: The types of those that the provider runs, with the uses that the request allows each, 0 if it does
            not say.
        parsed: The body, as it was read, until :meth:`forget`.
        shipped: What :func:`~enforcement.metering.typical.shipped_tokens` has found. Below 0: it was not asked.
    """

    format: str
    body: bytes
    attributes: Mapping[str, str]
    cap: int | None = 0
    n: int = 1
    text_bytes: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, int | bool] = field(default_factory=dict)
    hide_usage: bool = False
    keeps_context: bool = False
    is_background: bool = False
    cap_fields: tuple[str, ...] = ()
    default_field: str | None = None
    media_bytes: int = 0
    added_tokens: int = 0
    unbounded: str = ""
    objects: int = 0
    tool_models: Mapping[str, str] = field(default_factory=dict)
    modifiers: tuple[str, ...] = ()
    tools: int = 0
    own_tools: Mapping[str, int] = NO_TOOLS
    parsed: Parsed | None = field(default=None, repr=False, compare=False)
    shipped: int = field(default=-1, repr=False, compare=False)

    @property
    def has_tokens(self) -> bool:
        """Return whether the request has tokens to count. If not, limits on tokens or money cannot meter it."""
        return self.format != MCP

    def hides_output(self, *, whole: bool) -> bool:
        """
        Return whether the provider may charge output that was not seen, as it is reasoning, an image or sound, or as it
        comes in one piece that did not come. This reads the body again, so it is only for requests without the
        provider's last word.

        Args:
            whole: Whether the answer came to its end.
        """
        comes_at_once = self.attributes.get("stream") != "true" and not whole
        if comes_at_once or is_reasoning_model(self.attributes.get("model", "")):
            return True
        value = as_object(json_body.parse(self.body).value)
        return asks_for_reasoning(value) or bool(self.produced(value))

    def produced(self, value: Mapping[str, object]) -> tuple[str, ...]:
        """Return the classes of output that the request, of which this is the body, asks for beside text."""
        return produced_classes(self.format, value, self.attributes.get("model", ""))

    @property
    def written_cap(self) -> int | None:
        """The cap that was written into the body, which had none or a greater one. None: no cap was written."""
        return next((value for value in self.changes.values() if type(value) is int), None) if self.changes else None

    @property
    def is_only_text(self) -> bool:
        """Return whether the model has to read a text, and nothing beside it."""
        if not self.text_bytes or self.keeps_context or self.unbounded:
            return False
        return not self.parts or not any(self.parts.values())

    @property
    def is_counting(self) -> bool:
        """Return whether the request only counts tokens, which costs nothing."""
        return self.format.endswith(ENDS_COUNTING)

    def read_again(self) -> Parsed:
        """Return the body as it was read. If it was forgotten, it is read again."""
        if self.parsed is not None:
            return self.parsed
        read = json_body.parse(self.body)
        return Parsed(read.value, _ASK[self.format](read.value).content.media, read.has_marks, read.growth)

    def forget(self) -> None:
        """Forget the body as it was read, which takes several times the memory of *body*."""
        self.parsed = None

    def readable_bytes(self, value: dict[str, object]) -> int:
        """
        Return how many bytes a model may read of the body, of which this is the value, at most: all but the data of
        parts. Only a bound needs it.

        White space between values and escapes count nothing if there are line breaks or escapes that double a text.
        Otherwise there are few of them, so that to find them would take longer than it is worth.
        """
        body = self.body
        has_escapes = b"\\" in body and (b"\\u" in body or b"\\/" in body)
        growth = growth_within(value) if has_escapes or not body.isascii() else 0
        if has_escapes or b"\n" in body:
            return len(json_body.outside_strings(body)) + length_within(value) + growth - self.media_bytes
        return len(body) + growth - self.media_bytes

    def with_cap(self, cap: int) -> MeteredRequest:
        """
        Return this request with a cap in its body: the default of a policy, or a lower one than the request has.

        Args:
            cap: Tokens of each answer. Each cap in the body that is greater becomes this one.
        Raises:
            ValueError: The request has a lower cap already.
        """
        if cap == self.cap:
            return self
        if cap < 0 or (self.cap is not None and cap > self.cap):
            raise ValueError(f"cap: must be an integer from 0 to the cap of the request, {self.cap}, got {cap}")
        value = self.read_again().value
        greater = tuple(pointer for pointer in self.cap_fields if json_body.value_at(value, pointer) > cap)
        if self.cap is None and self.default_field is not None:
            greater = (self.default_field,)
        changes: dict[str, int | bool] = dict.fromkeys(greater, cap)
        body = json_body.write_values(self.body, value, changes)
        fields = self.cap_fields or greater
        changes = {**self.changes, **changes}
        return replace(self, body=body, cap=cap, changes=changes, cap_fields=fields, parsed=None)


def read_request(
    method: str,
    target: str,
    header: Header,
    body: bytes,
    *,
    default_cap: int | None = None,
    max_body: int = MAX_BODY,
    include_usage: bool = True,
    cap_field: str = "",
) -> MeteredRequest | Unmetered:
    """
    Read a request, and return what it may cost and the body to send on, or why it cannot be metered.

    Args:
        method: The HTTP method.
        target: The path, with percent escapes, and perhaps a query.
        header: Return the value of the header field with a name in lower case, or None.
        body: The body. Of a longer one than *max_body*, its first bytes do, if there is one byte too many.
        default_cap: A cap in tokens for requests that have none. It is written into the body. A caller that knows
            it only once the model is known uses :meth:`MeteredRequest.with_cap`.
        max_body: Bytes of the longest body that is read.
        include_usage: Whether streams that report usage only on request are asked for it. Some servers refuse that.
        cap_field: The field for a cap that is written into a chat completion, ``max_tokens`` or
            ``max_completion_tokens``. Empty: the latter. The former is also written beside the latter.
    """
    route = find_route(target)
    name = None if route is None else route.format
    if method != "POST":
        return Unmetered("method", name)
    encoding = header("content-encoding")
    if encoding and not _is_identity(encoding):
        return Unmetered("encoding", name)
    if len(body) > max_body:
        return Unmetered("too_large", name)
    parsed = json_body.parse(body)
    if route is None:
        return _read_call(target, parsed, header, body)
    if parsed.fault:
        return Unmetered(parsed.fault, name)
    if type(parsed.value) is not dict:
        return Unmetered("not_an_object", name)
    path, _, query = target.partition("?")
    if (route.format.startswith("gemini") or _OF_GOOGLE.search(path)) and hides_usage(query, header):
        return Unmetered("bad_query", name)
    content_type = header("content-type")
    if content_type and content_type != _JSON and not _is_utf8(content_type):
        return Unmetered("charset", name)
    try:
        if route.format.endswith(ENDS_COUNTING):
            return _read_counting(route, parsed.value, header, body)
        is_plain = not route.format.startswith(_WITH_MODIFIERS) and "/projects/" not in target
        modifiers = () if is_plain else _modifiers(target, route.format, header)
        return _read_metered(route, parsed, header, body, default_cap, include_usage, cap_field, modifiers)
    except UnreadableRequest as exc:
        reason = str(exc)
        return Unmetered(reason, name, door=unread_door(target) if reason == "format" else "")


def _is_identity(encoding: str) -> bool:
    return all(name.strip().lower() in ("", "identity") for name in encoding.split(","))


def _is_utf8(content_type: str) -> bool:
    """Return whether all readers of a content type find the same keys in JSON that is valid UTF-8."""
    named = content_type.lower().count("charset")
    if not named:
        return True
    # Some find a name also in other spellings, such as "charset*=utf-7''".
    found = _CHARSET.findall(content_type)
    return len(found) == named and all(name.lower() in _LIKE_UTF8 for name in found)


def _read_counting(route: Route, body: dict[str, object], header: Header, data: bytes) -> MeteredRequest:
    """Return a request that only counts tokens. Some name no model."""
    name = model_name(body.get("model") if route.model is None else route.model)
    attributes = {"stream": "false", **({} if name is None else {"model": name})}
    _add_session(attributes, body, header)
    return MeteredRequest(route.format, data, attributes)


def _read_metered(
    route: Route,
    parsed: json_body.ParsedBody,
    header: Header,
    data: bytes,
    default_cap: int | None,
    include_usage: bool,
    cap_field: str,
    modifiers: tuple[str, ...],
) -> MeteredRequest:
    body = parsed.value
    attributes = {"model": _model(route, body), "stream": route.stream or _stream(body)}
    changes: dict[str, int | bool] = {}
    if include_usage and route.format in _REPORT_ON_REQUEST and attributes["stream"] == "true":
        options = body.get("stream_options")
        if options is None or options.get("include_usage") is not True:
            changes[_INCLUDE_USAGE] = True
    hide_usage = bool(changes)
    asked = _ASK[route.format](body)
    if cap_field and route.format == "openai-chat":
        asked.default_field = f"/{cap_field}"
        asked.writes_cap = cap_field == "max_tokens"  # as it may ignore the newer one
    cap, cap_fields = asked.cap, asked.cap_fields
    if cap is None:
        cap = default_cap if asked.default_field is not None else None
    is_missing = asked.default_field not in cap_fields and (asked.writes_cap or not cap_fields)
    if cap is not None and asked.default_field is not None and is_missing:
        cap_fields += (asked.default_field,)
        changes[asked.default_field] = cap
    if changes:
        data = json_body.write_values(data, body, changes)
    may_call = TOOL_CALL in body.values()
    if is_misspelled(body) or (may_call and calls_tool(body) and not is_plain_call(body)):
        raise UnreadableRequest(json_body.DUPLICATE_KEY)
    if may_call:
        _add_tool(attributes, body)
    _add_session(attributes, body, header)
    content = asked.content
    return MeteredRequest(
        route.format,
        data,
        attributes,
        cap,
        asked.n,
        content.text_bytes,
        content.parts,
        changes,
        hide_usage,
        content.keeps_context,
        asked.is_background,
        cap_fields,
        asked.default_field,
        content.media_bytes,
        content.added_tokens,
        content.unbounded,
        parsed.objects,
        asked.tool_models,
        modifiers,
        0 if content.tools and _forbids_tools(body) else content.tools,
        content.own_tools,
        Parsed(body, content.media, parsed.has_marks, parsed.growth) if cap_fields == asked.cap_fields else None,
    )


def _forbids_tools(body: dict[str, object]) -> bool:
    choice = body.get("tool_choice")
    return choice == "none" or as_object(choice).get("type") == "none"


def _modifiers(target: str, format: str, header: Header) -> tuple[str, ...]:
    """Return what header fields ask for that raises the price. Bedrock's Invoke and Vertex AI have such fields."""
    if format.startswith("bedrock") and format != "bedrock-converse":
        fields: tuple[tuple[str, str], ...] = _BEDROCK_HEAD
    elif format.startswith("gemini") or "/projects/" in target:
        fields = _VERTEX_HEAD
    else:
        return ()
    found = [(name, (header(field) or "").strip().lower()) for name, field in fields]
    return tuple([f"{name}={value}" for name, value in found if value not in _USUAL])


def _model(route: Route, body: dict[str, object]) -> str:
    name = model_name(body.get("model") if route.model is None else route.model)
    if name is None:
        raise UnreadableRequest("no_model")
    if "," in name or route.engine not in (None, name) or not body.keys().isdisjoint(FURTHER_MODELS):
        _refuse_others(route, body, name)
    return name


def _refuse_others(route: Route, body: dict[str, object], name: str) -> None:
    """Raise UnreadableRequest if another model than the one whose price is charged may answer."""
    lists = [body.get(key) or [] for key in FURTHER_MODELS]
    if "," in name or route.engine not in (None, name) or any(found not in ([], [name]) for found in lists):
        raise UnreadableRequest("batch")


def _stream(body: dict[str, object]) -> str:
    options = body.get("stream_options")
    if options is not None and type(options) is not dict:
        raise UnreadableRequest("bad_stream")
    wanted, reports = body.get("stream"), None if options is None else options.get("include_usage")
    if type(wanted) not in _FLAGS or type(reports) not in _FLAGS:
        raise UnreadableRequest("bad_stream")
    return "true" if wanted else "false"


def _add_session(attributes: dict[str, str], body: dict[str, object], header: Header) -> None:
    session: object = header("sluicegate-session") or header("mcp-session-id")
    if not session and "metadata" in body:
        session = as_object(body["metadata"]).get("session_id")
    if type(session) is str and 0 < len(session) <= MAX_SESSION_LENGTH and is_encodable(session):
        attributes["session"] = session


def _add_tool(attributes: dict[str, str], body: dict[str, object]) -> None:
    tool = as_object(body.get("params")).get("name") if body.get("method") == TOOL_CALL else None
    if type(tool) is str and is_encodable(tool):
        attributes["tool"] = tool


def _read_call(target: str, parsed: json_body.ParsedBody, header: Header, body: bytes) -> MeteredRequest | Unmetered:
    """Return what a request to an unknown path is: a call of the Model Context Protocol, or unmetered."""
    value = json_body.parse_leniently(body) if parsed.fault else parsed.value
    is_batch = type(value) is list and any(_is_call(item) for item in value)
    if not is_batch and not _is_call(value):
        may_be_call = begins_as_json(body) if parsed.fault else calls_tool(value)
        return Unmetered("format", is_lookalike=may_be_call or resembles_route(target), door=unread_door(target))
    if parsed.fault or is_batch:
        return Unmetered(parsed.fault or "batch", MCP)
    if not is_plain_call(value):
        return Unmetered(json_body.DUPLICATE_KEY, MCP)
    attributes: dict[str, str] = {}
    _add_tool(attributes, value)
    _add_session(attributes, value, header)
    return MeteredRequest(MCP, body, attributes)


def _is_call(value: object) -> bool:
    return type(value) is dict and value.get("jsonrpc") == "2.0"
