import sys
from unicodedata import category

import pytest
from django.core.exceptions import ValidationError

from controlplane.core.text import PRINTABLE, PRINTABLE_LINES, escaped, unprintable, visible


def test_every_control_and_separator_is_refused():
    """C0, C1, line and paragraph separators, and halves of surrogate pairs."""
    hidden = [chr(code) for code in range(sys.maxunicode + 1) if category(chr(code)) in ("Cc", "Zl", "Zp", "Cs")]

    assert [char for char in hidden if not unprintable(char)] == []


@pytest.mark.parametrize("text", ["für Jörg", "日本　東京", "5 € ✓", "a\u00a0b", "עברית", "👍🏽", ""])
def test_what_people_write_is_accepted(text):
    """Every script, spaces of every width, and emoji of one sign."""
    PRINTABLE(text)

    assert (escaped(text), visible(text)) == (text, text)


@pytest.mark.parametrize("char", ["\n", "\x1b", "\x07", "\x85", "\u200b", "\u2028", "\u202e", "\u2066", "\ufeff"])
def test_a_refusal_names_the_character(char):
    """The number says what nobody can see."""
    with pytest.raises(ValidationError, match=f"contains U\\+{ord(char):04X}") as refused:
        PRINTABLE(f"a{char}b")

    assert refused.value.code == "unprintable"


def test_lines_may_be_broken_where_a_text_is_long():
    """A description has paragraphs and tabs, and no other control."""
    PRINTABLE_LINES("a\r\n\tb")

    with pytest.raises(ValidationError):
        PRINTABLE_LINES("a\x0cb")


def test_hidden_characters_are_escaped_to_be_seen():
    """A terminal shows what the name holds and obeys none of it."""
    assert escaped("\x1b]0;pwned\x07\u202e") == r"\x1b]0;pwned\x07\u202e"
