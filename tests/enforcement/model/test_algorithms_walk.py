"""Long random walks over one counter after the other, here and in the store, which is asked in pipelines."""

import random
from collections.abc import Iterator

import pytest

from tests.enforcement.model.agreement import (
    ALGORITHMS,
    BURSTS,
    COSTS,
    HOURS,
    KEEPING,
    MOST_ADDED,
    QUOTAS,
    ROLLOVERS,
    SECOND,
    STRIDES,
    WINDOWS,
    Call,
    Pair,
    agrees,
    client,  # noqa: F401 (a fixture)
)
from tests.scale import scale

# Most faults that were put into one of both for a trial showed within 10,000 decisions; one of a log's refunds and the
# last one of all, after 28,211, did not.
DECISIONS, OF_A_LOG = scale((10_000, 30_000), (400_000, 400_000))
STEPS = 100
TOGETHER = 500  # calls that are sent before the first answer is read


def one_of(chance: random.Random, ranges):
    """Return a number of one of these ranges and lists, each of which is as likely as the others."""
    drawn = chance.choice(ranges)
    return chance.randint(*drawn) if isinstance(drawn, tuple) else chance.choice(drawn)


def steps_of(algorithm: str, chance: random.Random) -> list[str]:
    """Return the kinds of steps of a walk. Most walks lack some: what needs many of one kind would not come up else."""
    steps = ["pass_time", "change_quota", "forget", "amend"]
    steps += ["change_rollover", "pass_windows"] if algorithm == "rollover" else []
    steps += ["change_window"] if algorithm in KEEPING else []
    left = chance.random()
    return ["decide", *(step for step in steps if chance.random() >= left)]


def walk(algorithm: str, chance: random.Random) -> Iterator[Call]:
    """Yield the calls of one walk."""
    burst = chance.choice((None, chance.randint(*BURSTS)))
    pair = Pair(algorithm, one_of(chance, QUOTAS), chance.choice(WINDOWS), burst)
    kinds = steps_of(algorithm, chance)
    for _ in range(STEPS):
        call = step(chance.choice(kinds), pair, chance)
        if call is not None:
            yield call


def step(kind: str, pair: Pair, chance: random.Random) -> Call | None:
    """Take one step, and return the call if it is one."""
    if kind == "decide":
        return pair.decide(one_of(chance, COSTS), charge=chance.random() < 0.5)
    if kind == "amend" and pair.charged:
        charged = pair.charged.pop(chance.randrange(len(pair.charged)))
        delta = one_of(chance, ((-charged[1], MOST_ADDED), [-1, 1, -charged[1]]))
        return pair.amend(*charged, max(delta, -charged[1]), elsewhere=chance.random() < 0.5)
    if kind == "forget":
        return pair.forget()
    if kind == "pass_time":
        pair.now += one_of(chance, STRIDES)
    elif kind == "pass_windows":
        pair.now += one_of(chance, HOURS) * 3_600 * SECOND
    elif kind == "change_quota":
        pair.change(quota=one_of(chance, QUOTAS))
    elif kind == "change_rollover":
        pair.change(rollover=one_of(chance, ROLLOVERS))
    elif kind == "change_window":
        pair.change(window=chance.choice(WINDOWS))
    return None


def judge(connection, calls: list[Call]) -> None:
    """Send all calls at once, and hold each answer against the one of the reference."""
    connection.send_packed_command(connection.pack_commands(command for command, _ in calls))
    replies = [connection.read_response(disable_decoding=True) for _ in calls]
    wrong = next((at for at, call in enumerate(calls) if not agrees(call, replies[at])), None)
    if wrong is not None:
        key = calls[wrong][0][3]
        before = [command for command, _ in calls[: wrong + 1] if key in command]
        pytest.fail(f"{replies[wrong]!r} instead of {calls[wrong][1]} after the calls {before}")


@pytest.mark.proof
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_random_walks_of_the_store_and_the_reference_are_alike(client, algorithm):  # noqa: F811
    """Same decision, remaining, reset, wait and mark for any sequence of calls, changes, refunds and clocks."""
    chance, decisions, calls, denied = random.Random(algorithm), 0, [], 0
    wanted = OF_A_LOG if algorithm == "sliding_log" else DECISIONS
    connection = client.connection_pool.get_connection()
    while decisions < wanted:
        made = list(walk(algorithm, chance))
        answers = [expected for _, expected in made if isinstance(expected, list)]
        decisions, denied = decisions + len(answers), denied + sum(answer[0] != 1 for answer in answers)
        calls += made
        if len(calls) >= TOGETHER or decisions >= wanted:
            judge(connection, calls)
            calls = []
    client.connection_pool.release(connection)

    assert decisions / 10 < denied < decisions * 9 / 10


def test_a_rollover_that_is_away_for_a_moment_carries_what_it_would_have(client):  # noqa: F811
    """What is known of earlier windows stays with the counter until another window is charged."""
    back, late = (Pair("rollover", 6, WINDOWS[0], None) for _ in range(2))
    calls = []
    for pair, is_late in ((back, False), (late, True)):
        calls.append(pair.decide(1, charge=True))
        pair.change(rollover=0)
        calls.append(pair.decide(2, charge=True))
        if is_late:
            pair.now += 2 * 3_600 * SECOND
            calls.append(pair.decide(2, charge=True))
        pair.change(rollover=14)
        pair.now += 6 * 3_600 * SECOND
        calls.append(pair.decide(0, charge=False))

    connection = client.connection_pool.get_connection()
    judge(connection, calls)
    client.connection_pool.release(connection)

    assert [calls[at][1][2] for at in (2, 6)] == [6 + 14, 6]
