"""Messages that are read once by all numbers say what they say when they are read for one number."""

from hypothesis import given
from hypothesis import strategies as st

from enforcement.service.wire import Fields, Malformed, part, parts, text, write, write_integer

NUMBERS = st.integers(1, 20)
PIECES = st.one_of(
    st.builds(write, NUMBERS, st.binary(max_size=200)),
    st.builds(write_integer, NUMBERS, st.integers(0, 2**64 - 1)),
    st.builds(lambda number: bytes((number << 3 | 1,)) + b"12345678", st.integers(1, 15)),
    st.binary(max_size=8),
)
MESSAGES = st.lists(PIECES, max_size=8).map(b"".join)


def read_or_refused(read):
    """Return what a reader returns, or that it finds the message malformed."""
    try:
        return read()
    except Malformed:
        return Malformed


@given(MESSAGES, NUMBERS)
def test_reading_once_and_reading_for_a_number_agree(message, number):
    assert read_or_refused(lambda: Fields(message).parts(number)) == read_or_refused(lambda: parts(message, number))
    assert read_or_refused(lambda: Fields(message).part(number)) == read_or_refused(lambda: part(message, number))
    assert read_or_refused(lambda: Fields(message).text(number)) == read_or_refused(lambda: text(message, number))
