"""Tell which models and requests may generate output that no answer shows, but that the provider charges."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from enforcement.metering.formats.text import as_object

# Models that reason unless they are told not to, by their providers' lists of December 2026. A name may have a prefix,
# as routers and clouds write it.
_MODELS: Final = re.compile(
    r"(?:^|[/.:_@-])o[1-9](?:$|[^a-z0-9])|gpt-?(?:[5-9]|oss)|codex|gemini-(?:2\.5|[3-9]|[a-z-]*latest)|deepseek-r\d|grok-(?:3-mini|[4-9]|code)|qwq|qwen-?3"
    r"|glm-(?:4\.[5-9]|[5-9])|minimax-m\d|magistral|kimi-k[2-9]|reason|think|deep-?research",
    re.IGNORECASE,
)
# Values by which a request says that it wants no reasoning.
_OFF: Final = frozenset(("none", "disabled", "off", "false", "0"))
_FIELDS: Final = (
    "reasoning_effort",
    "reasoning",
    "thinking",
    "include_reasoning",
    "enable_thinking",
    "thinking_budget",
)
MAX_REASONERS: Final = 256
_GEMINI_FIELDS: Final = ("thinkingConfig", "thinking_config")
# Objects that have such a field within.
_AROUND: Final = (
    "extra_body",
    "google",
    "chat_template_kwargs",
    "output_config",
    "generationConfig",
    "generation_config",
)


@lru_cache(256)
def is_reasoning_model(model: str) -> bool:
    """Return whether a model is known to reason, by its name."""
    return _MODELS.search(model) is not None


def asks_for_reasoning(body: Mapping[str, object], depth: int = 3) -> bool:
    """
    Return whether a request asks for reasoning, in the words of any provider.

    Args:
        body: The request, or an object within it.
        depth: How many objects deep the fields are looked for.
    """
    if any(_is_on(body.get(name)) for name in (*_FIELDS, *_GEMINI_FIELDS)):
        return True
    return depth > 1 and any(asks_for_reasoning(as_object(body.get(name)), depth - 1) for name in _AROUND)


class Reasoners:
    """
    Models that reason without being asked to, as their answers have shown to one process. Any thread may add one.

    A client that leaves such a model before it has said a word has cost what it has thought.
    """

    def __init__(self) -> None:
        self._found: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    def __contains__(self, model: str) -> bool:
        return model in self._found

    def saw(self, model: str, body: Callable[[], Mapping[str, object]]) -> None:
        """
        Note that an answer has shown reasoning.

        Args:
            model: The model that the request asked for.
            body: Returns the request. If it asked for reasoning, it says nothing of those that do not.
        """
        if model in self._found or len(self._found) >= MAX_REASONERS or is_reasoning_model(model):
            return
        if not asks_for_reasoning(body()):
            self._found.add(model)


def _is_on(value: object) -> bool:
    if type(value) is dict:
        return any(map(_is_on, value.values()))
    if type(value) is str:
        return value.lower() not in _OFF
    return bool(value)
