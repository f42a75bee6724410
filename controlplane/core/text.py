"""The one rule of which characters a name, a description or a reason may have."""

import json
import re
from typing import Any
from unicodedata import name

from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.utils.deconstruct import deconstructible

# Characters that nobody sees and that change what a terminal, a log or a page shows: controls, line and paragraph
# separators, zero-width and bidirectional characters. Written so that OpenAPI can state the same rule.
_HIDDEN = r"\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
# Halves of surrogate pairs, and tags. The patterns of some languages cannot name them.
_ODD = "\\ud800-\\udfff\U000e0000-\U000e007f"
_IN_LINE = re.compile(rf"[\x00-\x1f{_HIDDEN}{_ODD}]")
_IN_LINES = re.compile(rf"[\x00-\x08\x0b\x0c\x0e-\x1f{_HIDDEN}{_ODD}]")


@deconstructible
class Printable(RegexValidator):
    """
    A rule for a string that people read. It must not contain control, invisible or bidirectional characters.

    Args:
        lines: Whether the string may have line breaks and tabs.
    """

    code = "unprintable"

    def __init__(self, *, lines: bool = False) -> None:
        controls = r"\x00-\x08\x0b\x0c\x0e-\x1f" if lines else r"\x00-\x1f"
        # The pattern is what OpenAPI shows. The stricter unprintable() decides.
        super().__init__(rf"\A[^{controls}{_HIDDEN}]*\Z")
        self.lines = lines

    def __call__(self, value: object) -> None:
        found = unprintable(str(value), lines=self.lines)
        if found:
            raise ValidationError(f"Must have printable characters only, but contains {found}.", self.code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Printable) and self.lines == other.lines

    __hash__ = None  # type: ignore[assignment]


def unprintable(text: str, *, lines: bool = False) -> str:
    """Return a name of the first character of *text* that is not printable, such as "U+0000", or ""."""
    matched = (_IN_LINES if lines else _IN_LINE).search(text)
    return f"U+{ord(matched[0]):04X} {name(matched[0], '')}".rstrip() if matched else ""


def escaped(text: str) -> str:
    r"""
    Return *text* with an escape such as ``\x1b`` or ``\u202e`` in place of each character that is not printable.

    Rows that were saved before the rule may have such characters.
    """
    return _IN_LINE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible(text: str) -> str:
    """Return *text* without the characters that are not printable."""
    return _IN_LINE.sub("", text)


PRINTABLE = Printable()
PRINTABLE_LINES = Printable(lines=True)


class ReadableEncoder(json.JSONEncoder):
    """An encoder of JSON columns that keeps other characters than ASCII, so that a search in the text finds them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "ensure_ascii": False})


def slug_error(slug: str, project: str) -> str:
    """
    Return how a slug must begin to lie in the part of all slugs that belongs to a project, or "" if it does.

    A slug in use is refused, so who sees only some projects could otherwise learn the slugs of the others' policies.

    Args:
        project: The slug of the project.
    """
    head, separator, name = slug.rpartition("--")
    if (head, separator) == (project, "--") and name and not name.startswith("-"):
        return ""
    return f'Must be "{project}--" and a name without "--"'
