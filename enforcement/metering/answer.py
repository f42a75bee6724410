"""Read from an answer of a provider what it cost, while its bytes pass on to the client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from enforcement.metering.amounts import Usage
from enforcement.metering.formats.anthropic import MessagesAnswer
from enforcement.metering.formats.bedrock import ConverseAnswer, InvokeAnswer
from enforcement.metering.formats.cohere import CohereAnswer
from enforcement.metering.formats.counting import CountAnswer
from enforcement.metering.formats.gemini import GeminiAnswer
from enforcement.metering.formats.images import ImagesAnswer
from enforcement.metering.formats.openai import ChatAnswer, CompletionsAnswer, EmbeddingsAnswer
from enforcement.metering.formats.reading import AnswerReader
from enforcement.metering.formats.responses import ResponsesAnswer
from enforcement.metering.formats.text import as_object
from enforcement.metering.reasoning import is_reasoning_model
from enforcement.metering.settlement import IN_BETWEEN
from enforcement.metering.streams.encodings import READ_ALWAYS, Decoder, UndecodableAnswer, decoder_for
from enforcement.metering.streams.events import ArrayReader
from enforcement.metering.streams.frames import FrameReader
from enforcement.metering.streams.lines import BodyReader, LinesReader
from enforcement.metering.streams.meter import EventMeter, MessageMeter, StreamMeter

MAX_BODY: Final = 8 * 1024 * 1024
"""Bytes of the longest answer that is one JSON body and is read."""

MAX_LINE: Final = MAX_BODY
"""
Bytes of the longest line, event or array element of a stream that is read. The last event of a stream may have all that
a body has: OpenAI's responses repeat the instructions and tools of the request, and Gemini sends a whole image.
"""

MIN_LIMIT: Final = 1024
"""Least value of both limits."""

_READERS: Final[Mapping[str, Callable[[], AnswerReader]]] = {
    "openai-chat": ChatAnswer,
    "openai-responses": ResponsesAnswer,
    "openai-completions": CompletionsAnswer,
    "openai-embeddings": EmbeddingsAnswer,
    "anthropic-messages": MessagesAnswer,
    "gemini": GeminiAnswer,
    "gemini-embeddings": GeminiAnswer,
    "openai-compact": ResponsesAnswer,
    "openai-images": ImagesAnswer,
    "bedrock-converse": ConverseAnswer,
    "bedrock-invoke": InvokeAnswer,
    "bedrock-embeddings": InvokeAnswer,
    "cohere-chat-v1": CohereAnswer,
    "cohere-chat-v2": CohereAnswer,
    "cohere-embed": CohereAnswer,
}
FORMATS: Final = tuple(_READERS)
"""Names of the API formats whose answers can be read."""
_COUNTING: Final = "-count"
_FILTERED: Final = "content_filter"


def reader_of(format: str) -> AnswerReader:
    """
    Return a new reader of the events or the body of one answer.

    Args:
        format: One of :data:`FORMATS`, or that of calls that count tokens, which ends in ``-count``.
    """
    return CountAnswer() if format.endswith(_COUNTING) else _READERS[format]()


# Blanks and the bytes of a byte order mark, before the byte that says what an answer is.
_LEAD: Final = b" \t\r\n\xef\xbb\xbf"


class AnswerMeter:
    """
    Read one answer of a provider while it passes.

    Feed it every chunk of the body, send on what it returns, and say how the body ended. Nothing that an answer may
    contain raises an error, keeps bytes from passing, or makes the meter keep more than its limits. The attributes say
    at any time what was read so far.

    Args:
        format: One of :data:`FORMATS`.
        status: The HTTP status of the answer.
        content_encoding: Value of its field ``Content-Encoding``; None if it has none.
        hide_usage: Hide the event that reports usage alone, because the client did not ask for it. An answer that is
            compressed passes whole.
        encodings: Which encodings are decoded for reading, of
            :data:`~enforcement.metering.streams.encodings.ALL_ENCODINGS`.
        line_bytes: Longest line, event or array element that is read. Longer ones are skipped.
        body_bytes: Longest JSON body that is read.
    Raises:
        ValueError: There is no such format, or a limit is below 1024.
    """

    was_filtered = False
    _is_decodable = True
    _is_decided = False
    _decoder: Decoder | None = None
    # An answer that begins as JSON has no stream of events.
    _stream: StreamMeter | None = None
    # Once nothing else can come, the reader of every chunk that follows.
    _passing: StreamMeter | FrameReader | None = None
    _events: StreamMeter | EventMeter | MessageMeter | None = None  # what may know more than was read so far
    _json: ArrayReader | FrameReader | LinesReader | BodyReader | None = None

    def __init__(
        self,
        format: str,
        status: int = 200,
        content_encoding: str | None = None,
        *,
        hide_usage: bool = False,
        encodings: frozenset[str] = READ_ALWAYS,
        line_bytes: int = MAX_LINE,
        body_bytes: int = MAX_BODY,
    ) -> None:
        reader = _READERS.get(format)
        if reader is None and not format.endswith(_COUNTING):
            raise ValueError(f"format: must be one of {', '.join(FORMATS)}, got {format!r}")
        if line_bytes < MIN_LIMIT or body_bytes < MIN_LIMIT:
            raise ValueError(f"line_bytes, body_bytes: must be at least {MIN_LIMIT}")
        self.status = status
        self._read_so_far = CountAnswer() if reader is None else reader()
        if content_encoding is not None:
            try:
                self._decoder = decoder_for(content_encoding, encodings)
            except UndecodableAnswer:
                self._is_decodable = False
        self._line_bytes, self._body_bytes = line_bytes, body_bytes
        self._hides = hide_usage and self._decoder is None

    @property
    def is_readable(self) -> bool:
        """Whether the answer could be read so far."""
        return self._is_decodable and (self._json is None or not self._json.is_broken)

    @property
    def usage(self) -> Usage | None:
        """The usage that was reported last; None if none was."""
        if self._events is not None:
            self._events.catch_up()
        return self._read_so_far.usage

    @property
    def charged(self) -> Usage | None:
        """The usage that is charged: also tokens that the total of a report has, and that it does not name."""
        usage, untold = self.usage, self._read_so_far.untold
        return replace(usage, output=usage.output + untold) if usage is not None and untold else usage

    def last_word(self) -> Usage | None:
        """Return the usage that is charged if it is the last word of the provider, else None."""
        if self._events is not None:
            self._events.catch_up()
        read = self._read_so_far
        if read.usage is None or not read.is_final:
            return None
        return self.charged if read.untold else read.usage

    @property
    def reads_head(self) -> bool:
        """Whether header fields of the answer may say what it has used."""
        return self._read_so_far.reads_head

    @property
    def is_final(self) -> bool:
        """Whether that report is the last word of the provider."""
        if self._events is not None:
            self._events.catch_up()
        return self._read_so_far.is_final

    @property
    def hides_output(self) -> bool:
        """Whether reasoning was seen in the answer, or its model is known to reason. Not all of that is shown."""
        return self._read_so_far.hides_output or is_reasoning_model(self._read_so_far.model or "")

    @property
    def model(self) -> str | None:
        """The name that the answer gives the model; None if it gives none."""
        return self._read_so_far.model

    @property
    def text_bytes(self) -> int | None:
        """Bytes of generated text that were seen, in UTF-8; None if the answer cannot be read."""
        return self._read_so_far.text_bytes if self.is_readable else None

    @property
    def calls(self) -> int:
        """Calls of the provider's tools that were seen, which it charges a fee for."""
        return self._read_so_far.calls

    @property
    def settled_as(self) -> str:
        """
        How a request with this answer is settled if the client stayed to its end, its estimate was no bound, and its
        output is all to be seen.

        Returns:
            ``exact``, ``nothing``, ``estimated`` or ``observed``.
        """
        if self.is_final:
            return "exact"
        if self.status >= 400 and self.status not in IN_BETWEEN:
            return "estimated" if self.was_filtered else "nothing"
        return "observed" if self.is_readable and self.status not in IN_BETWEEN else "estimated"

    def expect(self, answers: int) -> None:
        """Note that the request asks for so many answers, which come side by side."""
        self._read_so_far.answers = answers

    def read_head(self, header: Callable[[str], str | None]) -> None:
        """Read the header fields of the answer. *header* returns the value of one by its name in lower case."""
        self._read_so_far.read_head(header)

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk of the body, and return the bytes to send on. They may be none, until the next chunk."""
        if self._passing is not None:
            return self._passing.feed(chunk)
        if not (self._is_decodable and (self._json is None or not self._json.is_broken)):
            return chunk
        if self._decoder is None:
            return self._read(chunk)
        self._decode(self._decoder, chunk)
        return chunk

    def finish(self, whole: bool = True) -> bytes:
        """
        Note that the body has ended, and return the bytes that are still to be sent on.

        Args:
            whole: The body came to its end. False: the connection broke, or nobody reads on.
        """
        if not self.is_readable:
            return b""
        held = b"" if self._stream is None else self._stream.finish()
        body = self._json.whole() if isinstance(self._json, LinesReader) else self._json
        if isinstance(body, BodyReader):
            self._read_body(body.value())
        elif whole and (self._decoder is None or self._decoder.is_complete):
            if self._events is not None:
                self._events.catch_up()
            self._read_so_far.end()
        return held

    def _decode(self, decoder: Decoder, chunk: bytes) -> None:
        try:
            for piece in decoder.feed(chunk):
                self._read(piece)
        except UndecodableAnswer:
            self._is_decodable = False

    def _read(self, chunk: bytes) -> bytes:
        if self._is_decided and self._stream is not None:
            return self._stream.feed(chunk)
        if self._json is not None:
            return self._json.feed(chunk)
        if chunk[:1] == b"\0" and self._read_so_far.frames:
            messages = self._events = MessageMeter(self._read_so_far)
            self._json = frames = FrameReader(messages.reader_for, limit=self._line_bytes)
            self._passing = frames if self._decoder is None else None
            return self._read(chunk)
        body = chunk.lstrip(_LEAD)
        self._is_decided = bool(body)
        if body[:1] in (b"{", b"["):
            return self._begin_json(chunk, body)
        plain = self._decoder is None
        if self._stream is None:
            self._stream = StreamMeter(self._read_so_far, limit=self._line_bytes, hides=self._hides, plain=plain)
            self._events = self._stream
        self._passing = self._stream if self._is_decided and plain else None
        return self._stream.feed(chunk)

    def _begin_json(self, chunk: bytes, body: bytes) -> bytes:
        """Begin to read JSON, and return the bytes to send on: those held back before, and the chunk."""
        held = b"" if self._stream is None else self._stream.release()
        self._stream = None
        if self._read_so_far.lines or body.startswith(b"["):
            events = self._events = EventMeter(self._read_so_far, hides=False)
            if body.startswith(b"["):
                self._json = ArrayReader(events.read, limit=self._line_bytes)
            else:
                self._json = LinesReader(events.read, BodyReader(self._body_bytes), limit=self._line_bytes)
        else:
            self._json = BodyReader(self._body_bytes)
        self._json.feed(body)
        return held + chunk if held else chunk

    def _read_body(self, body: dict[str, object] | None) -> None:
        if body is None:
            self._is_decodable = False
        else:
            self._read_so_far.read_body(body)
            self.was_filtered = self.status >= 400 and as_object(body.get("error")).get("code") == _FILTERED
