"""OpenAI's generation of images."""

from __future__ import annotations

from typing import Final

from enforcement.metering.formats.openai import usage_of
from enforcement.metering.formats.reading import AnswerReader, Asked
from enforcement.metering.formats.text import as_object

IMAGE_TOKENS: Final = 16_384
"""More tokens than an image has, by the tables that the provider publishes. A request has no cap."""


def ask_image(body: dict[str, object]) -> Asked:
    """Return what a request for images asks for."""
    asked = Asked(cap=IMAGE_TOKENS)
    asked.read_choices(body, "n")
    asked.content.add_text(body.get("prompt"))
    asked.content.has_no_bound("the request cannot cap the tokens of an image")
    return asked


class ImagesAnswer(AnswerReader):
    """An answer with images. That of models which are priced by the image reports no usage."""

    def read_body(self, body: dict[str, object]) -> None:
        self.take_model(body.get("model"))
        report = body.get("usage")
        usage = usage_of(report, "input_tokens", "output_tokens")
        if usage is None:
            return
        if not as_object(as_object(report).get("output_tokens_details")):
            usage = usage.with_more({"output": 0, "output_image": usage.all_output})
        if self.take_usage(usage):
            self.is_final = True

    def read_event(self, event: dict[str, object]) -> None:
        if str(event.get("type")).endswith(".completed"):
            self.read_body(event)

    def end(self) -> None:
        """Do nothing, since one event has the last word."""
