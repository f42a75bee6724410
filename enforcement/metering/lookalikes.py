"""
Find in the body of a request what another program may read in it, and the meter does not.

Programs differ: some ignore the case of keys, as Go's do, some decode UTF-16, as Python's do, and some read only the
first value of several. What one of them would find there must not get around a limit that looks for it.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection
from typing import Any, Final

TOOL_CALL: Final = "tools/call"
"""The method of the Model Context Protocol that calls a tool."""

_REQUEST: Final = (
    *("background", "best_of", "cachedContent", "cached_content", "content_policy_fallbacks", "contents"),
    *("context_window_fallbacks", "conversation", "deferred", "fallback_models", "fallbacks", "functions"),
    *("generationConfig", "generation_config", "input", "instructions", "max_completion_tokens", "max_output_tokens"),
    *("max_tokens", "messages", "metadata", "model", "models", "n", "previous_response_id", "prompt"),
    *("response_format", "stream", "stream_options", "suffix", "system", "systemInstruction", "system_instruction"),
    *("text", "tools", "message", "chat_history", "preamble", "documents", "tool_results", "connectors"),
    *("texts", "images", "inputs", "requests", "inferenceConfig", "additionalModelRequestFields", "toolConfig"),
    *("inputText", "textGenerationConfig", "max_gen_len", "max_tokens_to_sample"),
)
_STREAM_OPTIONS: Final = ("include_usage",)
_GENERATION: Final = ("candidateCount", "candidate_count", "maxOutputTokens", "max_output_tokens")
_MARKS: Final = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # those of UTF-32 are one with zeros
_BLANKS: Final = b"\0 \t\r\n"
_CALL: Final = ("jsonrpc", "method", "params")
_PARAMS: Final = ("name",)


def _by_spelling(*names: str) -> dict[str, str]:
    return {name.casefold(): name for name in names}


_WITHIN_REQUEST: Final = {
    "stream_options": _by_spelling(*_STREAM_OPTIONS),
    "generationConfig": _by_spelling(*_GENERATION),
    "generation_config": _by_spelling(*_GENERATION),
    "inferenceConfig": _by_spelling("maxTokens", "max_new_tokens"),
    "textGenerationConfig": _by_spelling("maxTokenCount"),
}
_WITHIN_NAMES: Final = frozenset(_WITHIN_REQUEST)
_BY_SPELLING: Final = _by_spelling(*_REQUEST)
_CALL_NAMES: Final = _by_spelling(*_CALL)
_PARAMS_NAMES: Final = _by_spelling(*_PARAMS)
# Names with capitals, as they are in lower case.
_MIXED: Final = frozenset(
    folded
    for names in (_BY_SPELLING, *_WITHIN_REQUEST.values(), _CALL_NAMES, _PARAMS_NAMES)
    for folded, name in names.items()
    if folded != name
)


def is_misspelled(body: dict[str, Any]) -> bool:
    """Return whether a request to a provider has a name that the meter reads, in another case."""
    text = "".join(body)
    if text.isascii() and text.islower() and _MIXED.isdisjoint(body) and _WITHIN_NAMES.isdisjoint(body):
        return False  # as nearly always
    if _is_misspelled(body, _BY_SPELLING):
        return True
    if _WITHIN_NAMES.isdisjoint(body):
        return False
    return any(type(body.get(name)) is dict and _is_misspelled(body[name], it) for name, it in _WITHIN_REQUEST.items())


def calls_tool(value: object) -> bool:
    """Return whether a program that is not strict finds a call of a tool in a JSON value, or in an array of them."""
    if type(value) is list:
        return any(_calls_tool(item) for item in value if type(item) is dict)
    return type(value) is dict and _calls_tool(value)


def is_plain_call(value: object) -> bool:
    """Return whether a JSON value is a JSON-RPC object in which every program reads the same method and tool."""
    if type(value) is not dict or value.get("jsonrpc") != "2.0" or _is_misspelled(value, _CALL_NAMES):
        return False
    params = value.get("params")
    return type(params) is not dict or not _is_misspelled(params, _PARAMS_NAMES)


def begins_as_json(body: bytes) -> bool:
    """Return whether a body that is not strict JSON begins as JSON does, in one of the encodings of Unicode."""
    # Characters of ASCII have zeros around them in UTF-16 and UTF-32.
    for mark in _MARKS:
        body = body.removeprefix(mark)
    return body.lstrip(_BLANKS)[:1] in (b"{", b"[")


def _calls_tool(call: dict[str, object]) -> bool:
    # The first look is quick. A body may be a list of a million objects.
    return TOOL_CALL in call.values() and any(
        item == TOOL_CALL and key.casefold() == "method" for key, item in call.items()
    )


def _is_misspelled(keys: Collection[str], names: dict[str, str]) -> bool:
    text = "".join(keys)
    if text.isascii() and text.islower():  # as nearly always
        return not _MIXED.isdisjoint(keys) and any(names.get(key, key) != key for key in keys)
    return any(names.get(key.casefold(), key) != key for key in keys)
