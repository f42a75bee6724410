"""Calls that count the tokens of a text, and cost nothing."""

from __future__ import annotations

from typing import Any

from enforcement.metering.formats.reading import AnswerReader
from enforcement.metering.usage import Usage


class CountAnswer(AnswerReader):
    """An answer to such a call. Whatever it says, nothing was used."""

    def read_body(self, body: dict[str, Any]) -> None:
        self.usage, self.is_final = Usage(), True

    def read_event(self, event: dict[str, Any]) -> None:
        self.read_body(event)

    def end(self) -> None:
        self.read_body({})
