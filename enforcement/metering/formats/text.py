"""Count the text of requests and answers, in bytes of UTF-8, and the parts of a request that are no text."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Final, Literal
from unicodedata import is_normalized, normalize

from enforcement.model.checks import shown
from enforcement.model.metered import FrozenMapping

TOKEN_ID_BYTES: Final = 4
"""Bytes of text that a token id stands for, in requests that name tokens instead of text."""

PROMPT_TOKENS: Final = 1_024
"""
More tokens than a provider adds by itself, for any model, to say how to use tools or how to write JSON. Anthropic adds
up to 500, and Groq 640 for Llama.
"""

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
# The kind of a part without a type, by the fields that it may have.
_UNTYPED: Final = {
    "image_url": "image",
    "audio_url": "audio",
    "input_audio": "audio",
    "video_url": "video",
    **dict.fromkeys(("file", "file_id", "file_url", "file_data"), "file"),
}
# Fields of a part that hold its data or their address, which no model reads as text.
_MEDIA: Final = frozenset(
    {
        *("url", "data", "image_url", "audio_url", "video_url", "file_url", "file_data", "file_id", "result"),
        *("fileUri", "file_uri"),
    }
)
_FORMS: Final[tuple[Literal["NFC", "NFKC"], ...]] = ("NFC", "NFKC")
# Types of media that are read as the text that they are.
_PLAIN_TEXT: Final = re.compile(
    r"(?:text/[^;]+|application/(?:json|xml|yaml|x-yaml|javascript|csv|x-sh|sql)|[^;]+[+](?:json|xml))(?:;.*)?",
    re.IGNORECASE | re.DOTALL,
)
_PACKED: Final = re.compile(rb"%PDF|PK\x03\x04|\xd0\xcf\x11\xe0|{\\rt|\x1f\x8b\x08")  # of PDF, ZIP, OLE, RTF and gzip
_PACKED_WITHIN: Final = 1_024
"""Bytes in which a program looks for what a file is. A PDF may have other bytes before it."""
_CHARSET: Final = re.compile(r"charset\s*=\s*[\"']?([^\"';\s]*)", re.IGNORECASE)
_UTF8: Final = frozenset(("utf-8", "utf8", "us-ascii", "ascii"))
_WIDE: Final = ("utf-16", "utf16", "utf-32", "utf32", "ucs", "iso-10646")
_WIDE_MARKS: Final = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_SHIFTS: Final = b"\x1b"  # between character sets, as in mails
_GROWS_BY: Final = 2
"""How many bytes more than one a byte may have in UTF-8, whatever character set it is of."""
_NO_BASE64: Final = re.compile("[^A-Za-z0-9+/_-]+")
NO_TOOLS: Final[Mapping[str, int]] = FrozenMapping()
PART_TYPES: Final = frozenset((*_TEXTS, *_KINDS))
"""Types of parts whose kind is known."""


def utf8_length(text: object) -> int:
    """Return the bytes of a string in UTF-8, with 3 for half of a surrogate pair. Any other value has 0."""
    if type(text) is not str:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def length_within(value: object) -> int:
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


def growth_within(value: object) -> int:
    """
    Return by how many bytes the strings inside a JSON value grow at most if a tokenizer brings them into a normal form
    of Unicode first, as those of Claude, Qwen and Cohere do. A single character may become 18.
    """
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if type(item) is str:
            total += 0 if item.isascii() else _growth_of(item)
        elif type(item) is dict:
            waiting.extend(item)
            waiting.extend(item.values())
        elif type(item) is list:
            waiting.extend(item)
    return total


def _growth_of(text: str) -> int:
    length = utf8_length(text)
    return max([length, *(utf8_length(normalize(it, text)) for it in _FORMS if not is_normalized(it, text))]) - length


def as_object(value: object) -> dict[str, object]:
    """Return a JSON object itself. Return an empty one for any other value."""
    return value if type(value) is dict else {}


def as_list(value: object) -> list[object]:
    """Return a JSON array itself. Return an empty one for any other value."""
    return value if type(value) is list else []


def objects_in(value: object) -> list[dict[str, object]]:
    """Return the objects of a JSON array. Its other elements, and any other value, are left out."""
    return [item for item in value if type(item) is dict] if type(value) is list else []


def objects_of(value: object) -> list[dict[str, object]]:
    """Return the same, and an object that stands in the place of an array, as Google's APIs take it."""
    return [value] if type(value) is dict else objects_in(value)


def model_name(value: object) -> str | None:
    """Return the name of a model: a string of 1 to 256 characters that UTF-8 can express. Else return None."""
    if type(value) is not str or not 0 < len(value) <= MAX_MODEL_LENGTH:
        return None
    return value if value.isascii() or is_encodable(value) else None


def is_encodable(text: str) -> bool:
    """Return whether UTF-8 can express a string. JSON may contain half of a surrogate pair, which it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _media_length(part: object) -> int:
    """Return the bytes of the strings in a part that are its data or their address."""
    total, waiting = 0, [part]
    while waiting:
        item = waiting.pop()
        if type(item) is dict:
            total += sum(utf8_length(item[name]) for name in item.keys() & _MEDIA)
            waiting.extend(item.values())
        elif type(item) is list:
            waiting.extend(item)
    return total


def _encoded_text(part: object) -> tuple[str, int]:
    """
    Return the base64 of a plain text that a part has as a file, or an empty string, and how many bytes a tokenizer may
    read beyond those that are encoded.
    """
    inner = as_object(part)
    inner = as_object(inner.get("file")) or inner
    data = inner.get("data")
    kind = inner.get("mimeType", inner.get("mime_type"))
    whole = inner.get("file_data")
    if type(whole) is str:
        head, _, data = whole.partition(";base64,")
        kind = head.removeprefix("data:")
    if type(data) is not str or type(kind) is not str or not _PLAIN_TEXT.fullmatch(kind.strip()):
        return "", 0
    charsets = {name.lower() for name in _CHARSET.findall(kind)}
    text = _decoded(data)
    # Content that claims to be text, and is a PDF or an archive, may be read as one.
    if text is None or text.startswith(_WIDE_MARKS) or any(name.startswith(_WIDE) for name in charsets):
        return "", 0
    try:
        if not charsets <= _UTF8 or _SHIFTS in text:
            return data, _GROWS_BY * len(text)
        return data, 0 if text.isascii() else _growth_of(text.decode())
    except UnicodeDecodeError:
        return data, _GROWS_BY * len(text)


def _decoded(data: str) -> bytes | None:
    """Return what base64 encodes, or None if it begins as a file that is more than its text, or has an end within."""
    if "=" in data.rstrip("= \r\n"):
        return None  # where some programs stop, and some go on
    if _NO_BASE64.search(data):
        data = _NO_BASE64.sub("", data)  # which programs skip
    data = data.replace("-", "+").replace("_", "/")
    data = data[: len(data) // 4 * 4 + (len(data) % 4 if len(data) % 4 > 1 else 0)]
    text = b64decode(data + "=" * (-len(data) % 4))
    return None if _PACKED.search(text, 0, _PACKED_WITHIN) else text


class Content:
    """
    The content of a request for a model to read.

    Attributes:
        text_bytes: Bytes of UTF-8 of all text.
        parts: The number of parts that are no text, by kind: image, audio, video, file, other.
        keeps_context: The request refers to content that the provider keeps, whose size it does not say.
        media: These parts, each after its kind.
        media_bytes: Bytes of the strings that are the data of these parts, or the addresses of their data. What is
            encoded text counts as so many bytes less as it is longer than what a tokenizer may read of it.
        tools: How many tools it offers that the client runs.
        own_tools: The types of those that the provider runs, with the uses that the request allows each, 0 if it does
            not say.
        added_tokens: The most tokens that the provider adds by itself, beside those around each message.
        unbounded: Why the model may read more than the request says, as a clause. Empty: it does not.
    """

    __slots__ = (
        "added_tokens",
        "keeps_context",
        "media",
        "media_bytes",
        "own_tools",
        "parts",
        "text_bytes",
        "tools",
        "unbounded",
    )

    def __init__(self) -> None:
        self.text_bytes = 0
        self.parts: dict[str, int] = {}
        self.media: list[tuple[str, object]] = []
        self.keeps_context = False
        self.media_bytes = self.added_tokens = self.tools = 0
        self.own_tools: Mapping[str, int] = NO_TOOLS
        self.unbounded = ""

    def add_text(self, value: object) -> None:
        """Count a string. Any other value counts nothing."""
        if type(value) is str:
            self.text_bytes += len(value) if value.isascii() else utf8_length(value)

    def add_within(self, value: object) -> None:
        """Count all strings inside a JSON value, including keys."""
        if value:
            self.text_bytes += length_within(value)

    def add_part(self, kind: str, part: object) -> None:
        """Count one part that is no text, or the text of a file that has nothing else."""
        encoded, growth = _encoded_text(part) if kind == "file" else ("", 0)
        if encoded:
            text_bytes = len(encoded.rstrip("=")) * 3 // 4
            self.text_bytes += text_bytes
            self.media_bytes += len(encoded) - text_bytes - growth
            return
        self.parts[kind] = self.parts.get(kind, 0) + 1
        self.media.append((kind, part))
        self.media_bytes += _media_length(part)

    def add_schema(self, value: object) -> None:
        """Count the definition of an answer or of tools, and what the provider says about it by itself."""
        if value:
            self.text_bytes += length_within(value)
            self.added_tokens = PROMPT_TOKENS

    def add_tools(self, tools: object, *plain: str) -> None:
        """
        Count the definitions of tools.

        Args:
            plain: Their types that the client runs itself. A tool without a type is plain, too. What the provider does
                with any other has no bound.
        """
        self.add_schema(tools)
        for tool in objects_in(tools):
            kind = tool.get("type")
            if kind is None or kind in plain:
                self.tools += 1
            else:
                self.add_own_tool(kind, tool.get("max_uses"))
                self.has_no_bound(f"the provider may run the tool {shown(kind)}, whose results the model reads")

    def add_own_tool(self, kind: object, uses: object = None) -> None:
        """Note a tool that the provider runs, and how often it may do so."""
        if type(kind) is str:
            self.own_tools = {**self.own_tools, kind: uses if type(uses) is int and uses > 0 else 0}

    def add_searches(self, body: dict[str, object], *names: str) -> None:
        """Note that the provider may look for more to read, if the request has one of these fields."""
        for name in names:
            if body.get(name):
                self.has_no_bound(f"{name} lets the model read more than the request has")

    def has_no_bound(self, why: str) -> None:
        """Note why the model may read more than the request says."""
        self.unbounded = self.unbounded or why

    def add_blocks(self, value: object) -> None:
        """Count a string, or an array of parts with a type each."""
        if type(value) is str:
            self.add_text(value)
        elif type(value) is list:
            for block in value:
                self.add_block(block)

    def add_block(self, block: object) -> None:
        """Count one part: its text, or one of its kind. A part of unknown type is of the kind ``other``."""
        if type(block) is not dict:
            self.add_text(block)
            return
        kind = block.get("type")
        if type(kind) is not str:
            self.add_text(block.get("text"))  # some servers go by the fields of a part without a type
            for field, named in _UNTYPED.items():
                if block.get(field) is not None:
                    self.add_part(named, block)
        elif kind in _TEXTS:
            self.add_text(block.get(_TEXTS[kind]))
        else:
            name = _KINDS.get(kind, "other")
            if name is not None:
                self.add_part(name, block)

    def add_tokens_or_text(self, value: object) -> None:
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
