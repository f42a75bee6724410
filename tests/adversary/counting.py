"""
How the provider counts a request, to its own advantage: each byte of a text is a token, and answers are as long as
their cap lets them be. It imports nothing of the product.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tests.adversary.pricelist import CONTAINER_FEE, MODELS, SEARCH_FEE, cost_of

ENDLESS = 60_000
"""Output tokens of an answer without a cap."""
KEPT = 300_000
"""Tokens of context that the provider keeps."""
FRAME, PROMPT = 16, 500
"""Tokens around a message, and of the provider's own words on how to use tools or to write JSON."""

_KEPT_FIELDS = ("previous_response_id", "conversation", "cachedContent", "cached_content")


@dataclass
class Bill:
    """
    A request as the provider sees it.

    Attributes:
        tokens: As :func:`~tests.adversary.pricelist.cost_of` takes them.
        thoughts: Those of the output that nobody sees.
    """

    model: str
    tokens: dict[str, int] = field(default_factory=dict)
    thoughts: int = 0
    modifiers: dict[str, str] = field(default_factory=dict)
    fees: int = 0
    factor: int = 1
    drawn: dict[str, int] = field(default_factory=dict)

    @property
    def micros(self) -> Fraction:
        drawn = cost_of("gpt-image-1", self.drawn, {}, 0, 1) if self.drawn else 0
        return cost_of(self.model, self.tokens, self.modifiers, self.fees, self.factor) + drawn

    def add(self, name: str, count: int) -> None:
        self.tokens[name] = self.tokens.get(name, 0) + count

    @property
    def input(self) -> int:
        return sum(self.tokens.get(name, 0) for name in ("input", "read", "write", "hour", "audio"))

    @property
    def output(self) -> int:
        return sum(self.tokens.get(name, 0) for name in ("output", "image_out", "audio_out"))


def bill(path: str, raw: bytes, play: dict[str, Any], tier: str = "") -> tuple[str, dict[str, Any], Bill]:
    """Return the format of a request, its body, and what it is charged. *tier* is what its head asks for."""
    body = json.loads(raw)  # of two equal keys, the last
    name = path.partition("?")[0]
    kind = next(kind for end, kind in _FORMATS.items() if end in name)
    model = name.rpartition("/")[2].partition(":")[0] if kind == "gemini" else body["model"]
    model = (body.get("models") or body.get("fallbacks") or [model])[-1]
    found = Bill(model)
    _count_input(found, kind, body, play)
    _count_output(found, kind, body, play)
    _cache(found, kind, body, raw, play)
    for field_name in ("service_tier", "serviceTier", "speed", "inference_geo"):
        if isinstance(body.get(field_name), str):
            modifier = {"serviceTier": "service_tier"}.get(field_name, field_name)
            found.modifiers[modifier] = body[field_name].strip().lower()
    if tier:
        found.modifiers["service_tier"] = tier
    found.factor = 3 if body.get("turbo") else 2 if body.get("allowed_turbo") else 1
    return kind, body, found


_FORMATS = {
    "/chat/completions": "chat",
    "/embeddings": "embeddings",
    "/completions": "completions",
    "/responses": "responses",
    "/v1/messages": "messages",
    "enerateContent": "gemini",
}


def _count_input(found: Bill, kind: str, body: dict[str, Any], play: dict[str, Any]) -> None:
    reads = {
        "chat": ("messages",), "responses": ("input", "instructions"), "messages": ("messages", "system"),
        "gemini": ("contents", "systemInstruction"), "completions": ("prompt", "suffix"), "embeddings": ("input",),
    }[kind]  # fmt: skip
    for name in reads:
        _read(found, body.get(name), play)
    found.add("input", 3)
    tools = body.get("tools")
    schema = body.get("response_format") or body.get("text") or body.get("output_config")
    for told in (tools, schema):
        if told:
            found.add("input", _strings(told))
    if tools or schema or '"citations"' in json.dumps(body):
        found.add("input", PROMPT)
    found.add("input", MODELS[found.model].get("adds", 0))
    _run_tools(found, body, play)
    holders = [body, body.get("extra_body") or {}, (body.get("extra_body") or {}).get("google") or {}]
    if any(holder.get(name) is not None for holder in holders for name in _KEPT_FIELDS):
        found.add("input", KEPT)
    if found.model == "groq/compound":
        found.add("input", 14_000)
    if (body.get("reasoning") or {}).get("mode") == "pro":
        found.add("input", 5 * found.tokens["input"])


def _run_tools(found: Bill, body: dict[str, Any], play: dict[str, Any]) -> None:
    kinds = [str(tool.get("type", "")) for tool in body.get("tools") or () if isinstance(tool, dict)]
    kinds += [name for tool in body.get("tools") or () if isinstance(tool, dict) for name in tool]
    searches = any("search" in kind.lower() for kind in kinds) or body.get("web_search_options") is not None
    if searches or "search" in found.model or ":online" in found.model:
        found.add("input", 12_000)
        found.fees += 2 * SEARCH_FEE
    if "image_generation" in kinds:
        found.drawn = {"input": 500, "output": 7_000}
    if "code_interpreter" in kinds:
        found.fees += CONTAINER_FEE


def _read(found: Bill, value: Any, play: dict[str, Any]) -> None:
    """Count a text, a token id, a part, or all that is inside one."""
    if isinstance(value, str):
        found.add("input", len(value.encode("utf-8", "surrogatepass")))
    elif isinstance(value, bool):
        return
    elif isinstance(value, int):
        found.add("input", 1)
    elif isinstance(value, list):
        for item in value:
            _read(found, item, play)
    elif isinstance(value, dict):
        _read_object(found, value, play)


def _read_object(found: Bill, value: dict[str, Any], play: dict[str, Any]) -> None:
    if "role" in value or "parts" in value:
        found.add("input", FRAME)
    data = _data_of(value)
    if data is None:
        skipped = ("role", "type", "cache_control", "id", "signature")
        for name, inner in value.items():
            if name not in skipped:
                _read(found, inner, play)
        return
    kind, text = data
    if kind.startswith("image"):
        found.add("input", _picture(found.model, text, play))
    elif kind.startswith("audio"):
        found.add("audio", min(32 * play.get("seconds", 60), 3_000))
    elif kind.startswith("text") or kind == "application/json":
        found.add("input", len(base64.b64decode(text)))
    else:
        found.add("input", 20_000)  # the most that it takes for one


def _data_of(value: dict[str, Any]) -> tuple[str, str] | None:
    """Return the type of the data that a part has, and the data or their address, or None if it has none."""
    inline = value.get("inlineData") or value.get("fileData")
    if inline:
        return inline["mimeType"], inline.get("data", "")
    source = value.get("source")
    if isinstance(source, dict) and source.get("type") != "text":
        return source.get("media_type", "image/png"), source.get("data", "")
    if "input_audio" in value:
        return "audio/wav", value["input_audio"]["data"]
    url = value.get("image_url")
    url = url["url"] if isinstance(url, dict) else url
    url = url or (value.get("file") or {}).get("file_data") or value.get("file_data")
    if url is None:
        return None
    head, _, data = url.partition(";base64,")
    return (head.removeprefix("data:"), data) if data else ("image/png", "")


def _picture(model: str, data: str, play: dict[str, Any]) -> int:
    """Return the tokens of a picture by what its provider publishes. One behind an address is very large."""
    width, height = struct.unpack(">II", base64.b64decode(data)[16:24]) if data else (6_000, 12_000)
    if model.startswith("gpt-4o"):
        scale = min(1, 2_048 / max(width, height))
        scale = min(scale, 768 / (min(width, height) * scale) * scale)
        return 85 + 170 * math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
    if model.startswith("claude"):
        return min(math.ceil(width * height / 750), 4_784)
    if max(width, height) <= 384:
        return 258
    side = min(768, max(256, math.floor(min(width, height) / 1.5)))
    return 258 * min(16, math.ceil(width / side) * math.ceil(height / side))


def _strings(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list):
        return sum(map(_strings, value))
    return sum(len(name) + _strings(inner) for name, inner in value.items()) if isinstance(value, dict) else 0


_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens")
_CHOICES = ("n", "best_of", "candidateCount")


def _count_output(found: Bill, kind: str, body: dict[str, Any], play: dict[str, Any]) -> None:
    if kind == "embeddings":
        return
    config = body.get("generationConfig") or body.get("generation_config") or {}
    caps = [holder[name] for holder in (body, config) for name in _CAPS if holder.get(name) is not None]
    length = min(play.get("output", ENDLESS), max(caps, default=ENDLESS) or ENDLESS)  # 0 is none
    answers = max([holder[name] for holder in (body, config) for name in _CHOICES if holder.get(name)] or [1])
    if kind == "completions" and isinstance(body["prompt"], list):
        answers *= len(body["prompt"])
    total = length * answers
    wanted = [word.lower() for word in body.get("modalities") or config.get("responseModalities") or ()]
    if "audio" in wanted:
        found.add("audio_out", total)
    elif "image" in wanted or found.model.endswith("-image"):
        found.add("image_out", total - total // 10)
        found.add("output", total // 10)
    else:
        found.add("output", total)
        found.thoughts = total * play.get("hidden", 90) // 100
    if body.get("prediction"):
        found.add("output", _strings(body["prediction"]))
    if (body.get("reasoning") or {}).get("mode") == "pro":
        found.add("output", 5 * total)


def _cache(found: Bill, kind: str, body: dict[str, Any], raw: bytes, play: dict[str, Any]) -> None:
    """Take a part of the input for read from the cache or written to it."""
    rates = MODELS[found.model]["rates"]
    count = found.tokens.get("input", 0)
    if kind == "messages":
        marks = list(_marks(body))
        if marks:
            name = "hour" if "1h" in marks else "write"
            kept = count * play.get("written", 100) // 100
            found.tokens["input"] = count - kept
            found.add(name, kept)
            count -= kept
    if "read" in rates and play.get("read"):
        kept = count * play["read"] // 100
        found.tokens["input"] = found.tokens.get("input", 0) - kept
        found.add("read", kept)


def _marks(value: Any) -> Any:
    if isinstance(value, list):
        for item in value:
            yield from _marks(item)
    elif isinstance(value, dict):
        mark = value.get("cache_control")
        if isinstance(mark, dict):
            yield mark.get("ttl", "5m")
        for inner in value.values():
            yield from _marks(inner)
