"""Tell which classes of output a request asks for beside text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from enforcement.metering.formats.text import as_list, as_object, objects_in

DRAWING: Final = re.compile(r"-image|imagen", re.IGNORECASE)
"""Models of Gemini that draw without being asked to, by their names."""

_CLASSES: Final[Mapping[object, str]] = {"image": "output_image", "audio": "output_audio"}


def _may_draw(body: Mapping[str, object]) -> bool:
    """Return whether a request offers the tool of the responses API that makes images."""
    return any(tool.get("type") == "image_generation" for tool in objects_in(body.get("tools")))


def produced_classes(format: str, body: Mapping[str, object], model: str) -> tuple[str, ...]:
    """Return the classes of output that a request asks for beside text, such as ``output_audio``."""
    if format == "openai-images" or (format == "openai-responses" and _may_draw(body)):
        return ("output_image",)
    kinds = as_list(body.get("modalities"))
    if format == "gemini":
        configs = [as_object(body.get(name)) for name in ("generationConfig", "generation_config")]
        names = "responseModalities", "response_modalities"
        kinds = [kind for config in configs for name in names for kind in as_list(config.get(name))]
        if not kinds and DRAWING.search(model):
            return ("output_image",)
    named = {kind.lower() for kind in kinds if type(kind) is str}
    return tuple([_CLASSES[name] for name in sorted(named & _CLASSES.keys())])
