"""Which format and which model the path of a request names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

_LAST_SEGMENTS: Final = {
    "responses": "openai-responses",
    "completions": "openai-completions",
    "embeddings": "openai-embeddings",
}
_DOTS: Final = frozenset({".", ".."})
_AZURE: Final = "/openai/deployments/"
_ANY_CASE: Final = re.compile(_AZURE, re.IGNORECASE)
_ONE_DEPLOYMENT: Final = re.compile(
    rf"{_AZURE}[^/]+(?:/extensions)?/(?:chat/completions|completions|embeddings|responses|responses/compact|images/generations)/"
)
_TWICE: Final = re.compile("%(?:2[EF]|5C)", re.IGNORECASE)  # dots and slashes that are escaped twice
_ENGINES: Final = "engines"
_GEMINI_METHODS: Final = {"generateContent": "false", "streamGenerateContent": "true"}
# Calls that only count the tokens of a text. They cost nothing.
_COUNTING: Final = {
    ("messages", "count_tokens"): "anthropic-count",
    ("responses", "input_tokens"): "openai-count",
    ("v1", "tokenize"): "cohere-count",
    ("v1", "detokenize"): "cohere-count",
    ("v1", "tokenize-text"): "xai-count",
    ("tokenizers", "estimate-token-count"): "moonshot-count",
    ("models", "count-tokens:rawPredict"): "anthropic-count",
}
_COUNTING_OF_GEMINI: Final = ("countTokens", "computeTokens")
ENDS_COUNTING: Final = "-count"
"""How the formats of calls end that count tokens and cost nothing."""
# Paths of providers that no meter reads, in lower case.
_UNREAD: Final = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (
            r"/batch(?:es)?(?:/|$)|:batchgenerate|:asyncbatch|batchpredictionjobs|model-invocation-jobs?(?:/|$)",
            "batches",
        ),
        (r"/realtime(?:/|$)|bidigeneratecontent", "realtime"),
        (r"/threads/(?:[^/]+/)?runs(?:/|$)", "runs"),
        (r"/rerank$", "rerank"),
        (r"/ml/v[^/]+/", "watsonx"),
        (r"/api/(?:chat|generate|embed|embeddings)$", "ollama"),
        (r"/v1/complete$", "complete"),
        (r"/v1/chat$", "writer"),
    )
)
_GEMINI_EMBEDDINGS: Final = ("embedContent", "batchEmbedContents")
_FOLDED_GEMINI: Final = tuple(f":{name.casefold()}" for name in (*_GEMINI_METHODS, *_GEMINI_EMBEDDINGS))
# The format by the last two segments.
_LAST_TWO: Final = {
    ("images", "generations"): "openai-images",
    ("responses", "compact"): "openai-compact",
    ("v1", "chat"): "cohere-chat-v1",
    ("v2", "chat"): "cohere-chat-v2",
    ("v1", "embed"): "cohere-embed",
    ("v2", "embed"): "cohere-embed",
}
# The format and whether the answer is streamed, by the segment after the name of a model.
_BEDROCK: Final = {
    "converse": ("bedrock-converse", "false"),
    "converse-stream": ("bedrock-converse", "true"),
    "invoke": ("bedrock-invoke", "false"),
    "invoke-with-response-stream": ("bedrock-invoke", "true"),
}
_SLASHES: Final = re.compile(r"[/\\]")
_MOST_KEPT: Final = 256
"""Characters of the longest path whose route is kept."""
_PATH_ENDS: Final = re.compile("[?#]")
_PATH_MAY_END: Final = re.compile(r"[?#\0]")
"""Where a server may end a path that it has decoded before it looks for the query, or that it keeps as a C string."""
_ODD: Final = re.compile(r"//|/\.|[;\\?#\0]|\s|\.(?:/|$)|./$")


@dataclass(frozen=True, slots=True)
class Route:
    """
    The format and the model that a path names.

    Attributes:
        format: The format.
        model: The model, whatever the body says. None if the body names it.
        stream: Whether the answer is streamed, "true" or "false". None if the body says it.
        engine: A model that some servers take from the path, and others from the body. None if there is none.
    """

    format: str
    model: str | None = None
    stream: str | None = None
    engine: str | None = None


@lru_cache(256)
def _route_of(path: str) -> Route | None:
    """Return the route of a path that is short enough to be kept. Almost all requests to a provider share a few."""
    return _find_in(path)


def find_route(target: str) -> Route | None:
    """
    Return what the end of a path says about the format of a request, or None if no format has such a path.

    Any prefix may stand before it. Percent escapes are read once. The query, empty segments and a trailing slash do
    not count. A path that servers read in different ways has no format, such as one with ``..`` as a segment.
    """
    path = target.partition("?")[0]
    return _route_of(path) if len(path) <= _MOST_KEPT else _find_in(path)


def _find_in(path: str) -> Route | None:
    segments = [segment for segment in unquote(path).split("/") if segment]
    if not segments or "#" in path or _is_ambiguous(segments):
        return None
    return _route_in(segments)


def unread_door(target: str) -> str:
    """Return what a path without a format offers, such as ``batches``, or an empty string if that is not known."""
    path = f"/{'/'.join(_lenient_segments(unquote(_PATH_ENDS.split(target)[0]).casefold()))}"
    return next((name for pattern, name in _UNREAD if pattern.search(path)), "")


def _route_in(segments: list[str]) -> Route | None:
    last, before = segments[-1], segments[-2] if len(segments) > 1 else ""
    if (before, last) in _COUNTING:
        return Route(_COUNTING[before, last])
    if last == "count-tokens" and segments[-3:-2] == ["model"]:
        return Route("bedrock-count", before)
    if before == "models":
        model, _, call = last.rpartition(":")
        if call in _GEMINI_METHODS:
            return Route("gemini", model, _GEMINI_METHODS[call])
        if call in _COUNTING_OF_GEMINI:
            return Route("gemini-count", model, "false")
        if call in _GEMINI_EMBEDDINGS:
            return Route("gemini-embeddings", model, "false")
    if last in _BEDROCK and "model" in segments[:-2]:
        return _bedrock_route(segments)
    if (before, last) in _LAST_TWO:
        return _openai_route(_LAST_TWO[before, last], segments[:-2])
    if last == "messages":
        return Route("anthropic-messages") if before == "v1" else None
    if last == "completions" and before == "chat":
        return _openai_route("openai-chat", segments[:-2])
    name = None if before.lower() == "chat" else _LAST_SEGMENTS.get(last)
    return None if name is None else _openai_route(name, segments[:-1])


def _bedrock_route(segments: list[str]) -> Route:
    """Return the route of a call of a model, whose name may be an ARN with slashes."""
    format, stream = _BEDROCK[segments[-1]]
    at = len(segments) - 2 - segments[-3::-1].index("model")
    model = "/".join(segments[at:-1])
    return Route("bedrock-embeddings" if "embed" in model else format, model, stream)


def _openai_route(format: str, prefix: list[str]) -> Route:
    engine = None
    if _ENGINES in prefix:
        engine = "/".join(prefix[prefix.index(_ENGINES) + 1 :]) or None
    return Route(format, _deployment_in(prefix), engine=engine)


def _is_ambiguous(segments: list[str]) -> bool:
    """
    Return whether a provider may find another format or model in a path than the one that we find.

    Some resolve "..", some take a backslash for a slash, some read escapes twice, and for Azure "Deployments" is
    "deployments". To a path with "async", some answer before they generate anything.
    """
    odd = any("\\" in segment or _TWICE.search(segment) or segment.partition(";")[0] in _DOTS for segment in segments)
    if odd or "async" in segments:
        return True
    names = "/".join(segments)
    if "deployments" not in names.lower():
        return False
    # After "deployments/chat/completions" nobody knows whether "chat" is the deployment.
    if names.endswith("openai/deployments/chat/completions"):
        return True
    found = _ANY_CASE.findall(f"/{names}/")
    if any(name != _AZURE for name in found):
        return True
    # Some take all that stands between for the name of the deployment, and some its first part.
    *_, last = [None, *_ONE_DEPLOYMENT.finditer(f"/{names}/")]
    return bool(found) and (last is None or last.end() != len(names) + 2)


def resembles_route(target: str) -> bool:
    """Return whether a program that takes paths apart less strictly than :func:`find_route` may find a format."""
    segments = _lenient_segments(unquote(_PATH_ENDS.split(target)[0]).casefold())
    return bool(segments) and (segments[-1].endswith(_FOLDED_GEMINI) or _route_in(segments) is not None)


def plain_path(path: str) -> str:
    """
    Return the path that a server may find in another one, if it drops empty segments, the slash at the end and what
    follows a semicolon, resolves "." and "..", takes a backslash for a slash, and drops dots and blanks at an end, a
    query that was escaped, and what follows a NUL. Mostly that is the path itself.
    """
    return f"/{'/'.join(_lenient_segments(path))}" if _ODD.search(path) else path


def _deployment_in(segments: list[str]) -> str | None:
    """Return the name of the deployment in the segments that stand before a format of Azure, or None."""
    if "deployments" not in segments:
        return None
    for at in range(len(segments) - 2, 0, -1):
        if segments[at] == "deployments" and segments[at - 1] == "openai":
            return segments[at + 1]
    return None


def _lenient_segments(path: str) -> list[str]:
    segments: list[str] = []
    for written in _SLASHES.split(_PATH_MAY_END.split(path)[0]):
        segment = written.partition(";")[0].strip()
        if segment == "..":
            segments = segments[:-1]
        elif segment := segment.rstrip(". \t\n\r\v\f"):
            segments.append(segment)
    return segments
