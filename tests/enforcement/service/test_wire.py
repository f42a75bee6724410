"""Messages that are read once by all numbers say what they say when they are read for one number."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcement.service.wire import Fields, Malformed, by_shape, part, parts, text, write, write_integer
from tests.scale import scale

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


def test_a_map_is_read_by_its_shape():
    long = b"v" * 300
    rows = {b"cookie": long, b"": b"", b"k" * 127: b"v" * 127, b"\xff": b"\x0a\x12"}
    message = write(2, b"GET") + b"".join(write(3, write(1, key) + write(2, value)) for key, value in rows.items())

    assert by_shape(message + write(4, long), 3) == (rows, {2: b"GET", 4: long})
    assert by_shape(message + write(3, write(1, b"cookie") + write(2, b"other")), 3) is None  # two values of one name


WRITTEN = st.builds(
    lambda key, value: write(1, key) + write(2, value), st.binary(max_size=140), st.binary(max_size=300)
)
MAPS = st.lists(
    st.one_of(st.builds(write, st.just(3), WRITTEN), st.builds(write, st.just(3), PIECES), PIECES), max_size=6
)


@pytest.mark.proof
@settings(max_examples=scale(60, 5_000), deadline=None)
@given(MAPS.map(b"".join), st.integers(0, 3))
def test_what_is_read_by_shape_is_what_the_fields_say(message, cut):
    """Also if it breaks off, or lies about a length. What is written otherwise is left to the fields."""
    message = message[: len(message) - cut]
    if (found := by_shape(message, 3)) is not None:
        whole, (entries, others) = Fields(message), found
        assert entries == {Fields(it).part(1): Fields(it).part(2) for it in whole.parts(3)}
        assert others == {number: whole.part(number) for number in range(1, 21) if number != 3 and whole.parts(number)}
