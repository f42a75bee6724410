"""Fixed windows that have begun are decided in a quick way, with the outcome of the way for everything else."""

import random
import re
import struct
from collections import Counter
from itertools import count

import pytest
import redis

from enforcement.embedded import ValkeyServer
from enforcement.lua import function
from enforcement.store.client import connect, load_library
from enforcement.store.resp import numbers
from tests.scale import scale

SECOND, NOW = 1_000_000, 1_767_225_600_123_456
HOUR, DAY = 3_600 * SECOND, 86_400 * SECOND
CASES, TOGETHER = scale(600, 200_000), 100
OTHERS = ["s|10|60000000||", "l|10|60000000||", "b|10|1|6000000|"]
SPOILT = [-3, 2**54, 2**54 + 4]
"""What nothing of ours writes into a counter, or only after many debts."""
PLAIN, OWNED = "", "owner"
"""Only a decision without a reservation takes the quick way."""
WAYS = (PLAIN, OWNED)
LINE = re.compile(r"^user_function:\d+: ")
TOLERANCE_MS = 20_000
"""How far the two ways may lie apart: a time to live is counted from when the store has the command."""
numbering = count()


@pytest.fixture(scope="module")
def client():
    with ValkeyServer(persistent=False) as server:
        client = connect(server.url, timeout=30.0)
        load_library(client)
        yield client


class Case:
    """One call over a few counters, and the same over their twins, which it takes the other way."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, number = chance, next(numbering)
        self.scopes = [f"sg:{{{number}.{way or 'plain'}}}:" for way in WAYS]
        self.setup: list[list[tuple]] = [[], []]
        self.now = NOW + chance.choice([0, 1, SECOND, chance.randrange(DAY)])
        self.whole = chance.random() < 0.8
        self.names: list[str] = []
        self.asked: list[str] = []
        for at in range(chance.choice([1, 1, 2, 3, 4])):
            # One counter may be asked twice.
            self.names.append(chance.choice(self.names) if at and chance.random() < 0.05 else f"c:{at:024x}")
            self.asked += [self._limit(self.names[-1]), self._cost()]
        if self.whole:
            self._everywhere("SADD", "changed", "whole")

    def _everywhere(self, command: str, name: str, *arguments) -> None:
        for calls, scope in zip(self.setup, self.scopes, strict=True):
            calls.append((command, scope + name, *arguments))

    def _limit(self, name: str) -> str:
        """Draw the state of a counter, and return the limit that is asked for it."""
        chance = self.chance
        if chance.random() < 0.02:
            return chance.choice([*OTHERS, "f|10", "f|9|0||x"])
        quota, shadow = chance.choice([0, 1, 7, 100, 100, 2**53 - 1]), "s" if chance.random() < 0.2 else ""
        letter, length = chance.choice("ffd"), chance.choice([SECOND, 60 * SECOND, HOUR, DAY])
        ends = self.now - self.now % length + length
        window = (
            f"0|{ends - 2 * length},{ends - length},{ends},{ends + length}" if chance.random() < 0.3 else f"{length}|"
        )
        if chance.random() < 0.05:  # a lifetime
            window, ends = "0|", 0
        if chance.random() < 0.95:
            self._state(name, quota, length, ends)
        return f"{letter}|{quota}|{window}|{shadow}"

    def _state(self, name: str, quota: int, length: int, ends: int) -> None:
        chance = self.chance
        if chance.random() < 0.01:
            self._everywhere("SADD", name, "of another type")
            return
        if ends and chance.random() < 0.1:
            ends = self.now + chance.choice([0, 0, 0, -1, 1, -length, length])
        last = self.now - chance.choice([0, 1, 999, SECOND - 1, SECOND, 7 * SECOND])
        if chance.random() < 0.1:
            last = self.now + chance.choice([1, SECOND, length, length + 1])
        used = chance.choice([0, quota // 2, quota // 3, quota - 3, quota - 1, quota, quota + 3])
        used = chance.choice(SPOILT) if chance.random() < 0.1 else max(0, used)
        value = struct.pack(">ddd", used, ends, last) + chance.choice([b"", struct.pack(">d", last), b"x" * 56])
        life = chance.choice([("PX", 90_000_000), ("PX", 3_600_000), (), ()])
        self._everywhere("SET", name, value if chance.random() < 0.99 else value[:12], *life)

    def _cost(self) -> str:
        chance = self.chance
        usual = chance.random() < 0.95
        return chance.choice(
            ["1", "1", "1", "2", "7.0", "0x3"] if usual else ["0", "-1", "0.5", "nan", "inf", "1e300", "", "x"]
        )

    def calls(self, way: int) -> list[tuple]:
        """Return the commands: what is there before, the decision, and what is there after it."""
        scope = self.scopes[way]
        keys = [*[scope + name for name in self.names], scope + "changed"]
        decide = ("FCALL", function("decide"), len(keys), *keys, self.now, "1", WAYS[way], *self.asked)
        looks = [("DUMP", key) for key in keys] + [("PTTL", key) for key in keys[:-1]]
        return [*self.setup[way], decide, *looks]

    def read(self, way: int, replies: list):
        """Return whether it was admitted or refused, the answer, values, and lives."""
        found, *looks = replies[len(self.setup[way]) :]
        dumps, lives = looks[: len(self.names) + 1], looks[len(self.names) + 1 :]
        if isinstance(found, redis.ResponseError):
            return "refused", LINE.sub("", str(found))[:30], dumps, lives
        found = list(numbers(found))
        if WAYS[way] == OWNED and len(found) > 2:
            found = [*found[:2], *(number for i, number in enumerate(found[2:], 1) if i % 5)]  # without marks
        return {1: "admitted", 0: "denied"}.get(found[0], "unknown"), found, dumps, lives


def ask(client, cases: list[Case]) -> list[list]:
    """Send everything at once, and return what each case found by each way."""
    calls = [call for case in cases for way in (0, 1) for call in case.calls(way)]
    connection = client.connection_pool.get_connection()
    connection.send_packed_command(connection.pack_commands(calls))
    replies = []
    for _ in calls:
        try:
            replies.append(connection.read_response(disable_decoding=True))
        except redis.ResponseError as refusal:
            replies.append(refusal)
    client.connection_pool.release(connection)
    found, at = [], 0
    for case in cases:
        ways = []
        for way in (0, 1):
            size = len(case.calls(way))
            ways.append(case.read(way, replies[at : at + size]))
            at += size
        found.append(ways)
    return found


def assert_alike(case: Case, quick, other) -> None:
    told = f"{case.setup[0]} {case.asked} at {case.now}"
    assert quick[:3] == other[:3], told
    assert all(abs(a - b) < TOLERANCE_MS for a, b in zip(quick[3], other[3], strict=True)), (told, quick[3], other[3])


@pytest.mark.proof
def test_both_ways_charge_and_answer_alike(client):
    """Answers, values and times to live of counters begun or ended, lost or late, spoilt, or no counters."""
    chance, outcomes = random.Random(25), Counter()
    for _ in range(CASES // TOGETHER):
        cases = [Case(chance) for _ in range(TOGETHER)]
        for case, (quick, other) in zip(cases, ask(client, cases), strict=True):
            assert_alike(case, quick, other)
            outcomes[quick[0]] += 1
        client.flushdb()

    assert min(outcomes[kind] for kind in ("admitted", "denied", "refused", "unknown")) > CASES / 200, outcomes
