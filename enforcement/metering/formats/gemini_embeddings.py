"""Gemini's embedContent and batchEmbedContents, whose answers report their usage as those of generateContent do."""

from __future__ import annotations

from enforcement.metering.formats.gemini import add_parts
from enforcement.metering.formats.reading import Asked
from enforcement.metering.formats.text import as_object, objects_of


def ask_gemini_embedding(body: dict[str, object]) -> Asked:
    """Return what a request for embeddings asks for. Nothing is generated, and all of a batch have the same model."""
    asked = Asked(cap=0)
    for one in [body, *objects_of(body.get("requests"))]:
        add_parts(asked.content, as_object(one.get("content")))
        asked.content.add_text(one.get("title"))
    return asked
