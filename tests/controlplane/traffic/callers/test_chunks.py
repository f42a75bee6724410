"""The bytes of a recorded day."""

from controlplane.traffic.callers.chunks import Chunk, read_hours


def test_the_heads_of_a_day_say_the_most_of_each_span():
    """Requests at an unknown second count for each ten seconds of their minute."""
    chunk = Chunk.of([(0, 5, 5, 1, [1, 4, 0, 0, 0, 0]), (1, 7, 7, 1, [7, 0, 0, 0, 0, 0]), (61, 3, 3, 0, [0] * 6)])

    heads = read_hours([chunk.hours()])

    assert heads[0, :2].tolist() == [[12, 7, 7, 7, 12], [3, 3, 6, 3, 3]]


def test_a_chunk_reads_as_it_was_written():
    """What is read is what was written, and no bytes are an empty day."""
    chunk = Chunk.of([(1439, 5, 4, 1 << 59, [1, 4, 0, 0, 0, 0])])

    read = Chunk.read(chunk.body())

    assert (read.minutes.tolist(), read.seconds.tolist(), read.allowed.tolist()) == ([1439], [1 << 59], [4])
    assert Chunk.read(b"").demand.tolist() == []
