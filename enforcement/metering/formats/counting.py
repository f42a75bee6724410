"""Calls that count the tokens of a text, and cost nothing."""

from __future__ import annotations

from typing import Final

from enforcement.metering.amounts import Usage
from enforcement.metering.formats.anthropic import MessagesAnswer
from enforcement.metering.formats.bedrock import ConverseAnswer
from enforcement.metering.formats.cohere import CohereAnswer
from enforcement.metering.formats.gemini import GeminiAnswer
from enforcement.metering.formats.openai import ChatAnswer
from enforcement.metering.formats.reading import AnswerReader
from enforcement.metering.formats.text import as_object

_REPORTS: Final = frozenset(("usage", "usageMetadata", "meta"))
# The names of OpenAI's responses are those of messages.
_GENERATING: Final = (ChatAnswer, MessagesAnswer, GeminiAnswer, ConverseAnswer, CohereAnswer)


class CountAnswer(AnswerReader):
    """An answer to such a call. Nothing was used, unless it reports usage: then it was no count."""

    def read_body(self, body: dict[str, object]) -> None:
        self.usage, self.is_final = self.usage or Usage(), True
        for one in (body, as_object(body.get("message")), as_object(body.get("response"))):
            if not _REPORTS.isdisjoint(one):
                self._read_report(one)

    def read_event(self, event: dict[str, object]) -> None:
        self.read_body(event)

    def end(self) -> None:
        self.read_body({})

    def _read_report(self, body: dict[str, object]) -> None:
        for kind in _GENERATING:
            reader = kind()
            reader.read_body(body)
            if reader.usage is not None:
                self.usage, self.model = reader.usage, reader.model
                return
