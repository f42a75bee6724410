"""Count the text of requests and answers, in bytes of UTF-8, and the parts of a request that are no text."""

from __future__ import annotations

from typing import Any, Final

TOKEN_ID_BYTES: Final = 4
"""Bytes of text that a token id stands for, in requests that name tokens instead of text."""

MAX_MODEL_LENGTH: Final = 256
"""Longest name of a model, in characters."""

# The field that holds the text of a part, by the type of the part.
_TEXTS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "summary_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
# The kind of a part that is no text, by its type. None: nobody can read it, and it counts nothing.
_KINDS: Final = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "computer_screenshot": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
    "file": "file",
    "input_file": "file",
    "document": "file",
    "container_upload": "file",
    "redacted_thinking": None,
}
_UNREAD: Final = ("name", "encrypted_content", "thoughtSignature", "thought_signature")
PART_TYPES: Final = frozenset((*_TEXTS, *_KINDS))
"""Types of parts whose kind is known."""


def utf8_length(text: Any) -> int:
    """Return the bytes of a string in UTF-8, with 3 for half of a surrogate pair. Any other value has 0."""
    if type(text) is not str:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def length_within(value: Any) -> int:
    """Return the bytes of all strings inside a JSON value, including the keys of its objects."""
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if type(item) is str:
            total += len(item) if item.isascii() else utf8_length(item)
        elif type(item) is dict:
            waiting.extend(item)
            waiting.extend(item.values())
        elif type(item) is list:
            waiting.extend(item)
    return total


def as_object(value: Any) -> dict[str, Any]:
    """Return a JSON object itself. Return an empty one for any other value."""
    return value if type(value) is dict else {}


def as_list(value: Any) -> list[Any]:
    """Return a JSON array itself. Return an empty one for any other value."""
    return value if type(value) is list else []


def objects_in(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a JSON array. Its other elements, and any other value, are left out."""
    return [item for item in value if type(item) is dict] if type(value) is list else []


def model_name(value: Any) -> str | None:
    """Return the name of a model: a string of 1 to 256 characters that UTF-8 can express. Else return None."""
    if type(value) is not str or not 0 < len(value) <= MAX_MODEL_LENGTH:
        return None
    return value if is_encodable(value) else None


def is_encodable(text: str) -> bool:
    """Return whether UTF-8 can express a string. JSON may contain half of a surrogate pair, which it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unread_length(value: Any) -> int:
    """
    Return the bytes of strings in a JSON value that are no text of a request, and that a model may read all the same:
    names of speakers, and earlier thoughts that only the provider can decrypt.
    """
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if type(item) is dict:
            names = (*_UNREAD, "data") if item.get("type") == "redacted_thinking" else _UNREAD
            total += sum(utf8_length(item.get(name)) for name in names)
            waiting.extend(item.values())
        elif type(item) is list:
            waiting.extend(item)
    return total


class Content:
    """
    What a request gives a model to read.

    Attributes:
        text_bytes: Bytes of UTF-8 of all text.
        parts: The number of parts that are no text, by kind: image, audio, video, file, other.
        keeps_context: The request refers to content that the provider keeps or fetches, whose size it does not say.
    """

    __slots__ = ("keeps_context", "parts", "text_bytes")

    def __init__(self) -> None:
        self.text_bytes = 0
        self.parts: dict[str, int] = {}
        self.keeps_context = False

    def add_text(self, value: Any) -> None:
        """Count a string. Any other value counts nothing."""
        if type(value) is str:
            self.text_bytes += len(value) if value.isascii() else utf8_length(value)

    def add_within(self, value: Any) -> None:
        """Count all strings inside a JSON value, including keys."""
        if value:
            self.text_bytes += length_within(value)

    def add_tools(self, value: Any, ours: frozenset[str | None]) -> None:
        """
        Count the definitions of tools. Those that the provider runs or describes itself add content of its own.

        Args:
            ours: The types of tools that are described in the request, and that the client runs.
        """
        self.add_within(value)
        for tool in objects_in(value):
            kind = tool.get("type")
            if not (kind is None or type(kind) is str) or kind not in ours:
                self.keeps_context = True

    def add_part(self, kind: str) -> None:
        """Count one part that is no text."""
        self.parts[kind] = self.parts.get(kind, 0) + 1

    def add_blocks(self, value: Any) -> None:
        """Count a string, or an array of parts with a type each."""
        if type(value) is str:
            self.add_text(value)
        elif type(value) is list:
            for block in value:
                self.add_block(block)

    def add_block(self, block: Any) -> None:
        """Count one part: its text, or one of its kind. A part of unknown type is of the kind ``other``."""
        if type(block) is not dict:
            self.add_text(block)
            return
        kind = block.get("type")
        if type(kind) is not str:
            self.add_text(block.get("text"))  # some servers take a part without a type for text
        elif kind in _TEXTS:
            self.add_text(block.get(_TEXTS[kind]))
        else:
            name = _KINDS.get(kind, "other")
            if name is not None:
                self.add_part(name)

    def add_tokens_or_text(self, value: Any) -> None:
        """Count a string, an array of strings, of token ids, or of arrays of token ids."""
        if type(value) is str:
            self.add_text(value)
        for item in as_list(value):
            if type(item) is int:
                self.text_bytes += TOKEN_ID_BYTES
            elif type(item) is list:
                self.text_bytes += TOKEN_ID_BYTES * sum(1 for token in item if type(token) is int)
            else:
                self.add_text(item)


__all__ = [
    "MAX_MODEL_LENGTH",
    "PART_TYPES",
    "TOKEN_ID_BYTES",
    "Content",
    "as_list",
    "as_object",
    "is_encodable",
    "length_within",
    "model_name",
    "objects_in",
    "unread_length",
    "utf8_length",
]
