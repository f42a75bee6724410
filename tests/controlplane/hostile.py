"""
Somebody with an account of the store who tries everything that the store lets it do.

What it may do is read from ``ACL LIST``, so a right that is added is tried too. Arguments are odd: numbers at the ends
of their ranges, text that is none, and what an enforcer writes, with the ids of others and with lies in it.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import ResponseError

from enforcement.metering.tally import COUNT_NAMES
from enforcement.model.keys import Keys

LAST = f"{2**64 - 1}-{2**64 - 1}"
NUMBERS = [
    "0",
    "1",
    "-1",
    "2",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e999",
    *map(str, (2**31, 2**53, 2**63 - 1, -(2**63), 2**64)),
]
TEXTS = ["", "x", "\0", "\ud7ff", b"\xff\xfe", "[" * 5_000, "9" * 400, "{}", "a|b|c\n{}", " " * 70_000]
RESERVATIONS = ("reservations", "reservations:", "reservations-of-tokens")
YEAR_9999_US = 253_402_300_798_999_999


class Right(NamedTuple):
    """Some commands, in lower case, with the patterns of the keys that they may be sent for."""

    commands: tuple[str, ...]
    patterns: tuple[str, ...]


def rights(client: Redis, account: str) -> list[Right]:
    """Return what an account may do, which is its own rules and those of each of its selectors."""
    (line,) = (line for line in client.execute_command("ACL LIST") if line.split()[1] == account)
    selectors = re.findall(r"\(([^)]*)\)", line)
    return [_right(re.sub(r"\([^)]*\)", "", line)), *map(_right, selectors)]


def _right(rules: str) -> Right:
    words = rules.split()
    commands = tuple(word[1:] for word in words if word.startswith("+"))
    patterns = tuple(word.partition("~")[2].replace("\\", "") for word in words if re.match(r"(%\w+)?~", word))
    return Right(commands, patterns)


class Hostile:
    """
    A sequence of commands of one account, the same for each seed.

    Args:
        admin: Knows what there is: the account's rights, and the names of the functions.
        account: The name of the account.
        project: The id of the project to which it is limited.
        others: Ids of another project and of its token and policy, which are no secret.
    """

    def __init__(self, admin: Redis, account: str, project: str, others: Sequence[str], seed: int) -> None:
        self.random = random.Random(seed)
        self.project, self.others = project, others
        self.functions = [
            dict(itertools.batched(function, 2))["name"]
            for library in admin.execute_command("FUNCTION LIST")
            for function in dict(itertools.batched(library, 2))["functions"]
        ]
        self.pairs = [
            (command, pattern)
            for right in rights(admin, account)
            for command in right.commands
            for pattern in right.patterns or ("",)
        ]
        self.streams = [pattern.replace("*", "0") for command, pattern in self.pairs if command == "xadd"]

    def commands(self) -> Iterator[list[Any]]:
        """Yield commands without end: each one that is permitted on each kind of key, and then again."""
        while True:
            self.random.shuffle(self.pairs)
            for command, pattern in self.pairs:
                yield from self._tried(command, pattern)

    def recipes(self, keys: Keys) -> list[list[Any]]:
        """Return what is odd only as a whole, whatever else was sent: what an enforcer writes, with lies in it."""
        own, (project, token, policy) = self.project, self.others
        minute, now_us, index = int(time.time() // 60) - 5, time.time_ns() // 1000, keys.reservations(own)
        stream = keys.intake(own), "*", "id"
        totals = [[minute, own, "x", "", "", "requests", 2**50, 2**50, 0, 2**50]] * 4_096
        lies = [[minute, project, token, "", "", "requests", 10**6, 0, 0, 10**6], [minute, own, token, *totals[0][3:]]]
        lies += [[minute, own, "", policy, "rpm", *totals[0][5:]]]
        lies += [
            [minute, own, "", f"pol_{it}", it, f"u{it}", 1, 0, 0, 1]
            for it in map(str, self.random.sample(range(9**9), 99))
        ]
        commands: list[list[Any]] = []
        for name in self.streams:
            commands += [
                ["XADD", name, *stream[1:], f"evil-{self.random.random()}", "rows", json.dumps(rows)]
                for rows in (totals, lies)
            ]
        for ident in ("evil", "proxy-1", "proxy-honest"):
            seen = {"id": ident, "state": "ok", "seen_at_us": YEAR_9999_US}
            commands += [["SET", keys.instance(ident), json.dumps(seen)], ["ZADD", keys.instances, str(now_us), ident]]
        commands += [["ZADD", keys.instances, "9e18", "ghost"], ["SET", keys.instances, "x"]]
        commands += [["ZADD", index, score, "r1"] for score in ("-inf", "1")] + [
            ["SET", keys.reservation(own, "r1"), self._record()]
        ]
        commands += [["ZADD", f"{index}-of-tokens", "-inf", "t"]]
        commands += [["SET", index, "x"]] if self.random.random() < 0.5 else []
        return commands + [["XADD", name, LAST, "a", "b"] for name in self.streams]

    def _tried(self, command: str, pattern: str) -> Iterator[list[Any]]:
        name = command.upper().split("|")
        if command == "xadd":
            yield from self._xadds(self._key(pattern))
        elif command == "fcall":
            yield self._fcall(pattern)
        elif command == "set" and "instance" in pattern:
            ident = self.random.choice(["proxy-1", "evil", "x" * 200, "\0"])
            yield ["SET", pattern.replace("*", ident), self._heartbeat(ident), "PX", "15000"]
        elif command == "zadd":
            member = self.random.choice(["proxy-1", "evil", "r" * 70, self._counter()])
            yield ["ZADD", self._key(pattern), self._number(), member]
        elif command == "set":
            yield ["SET", self._key(pattern), self.random.choice([self._record(), self._odd()])]
        elif pattern:
            yield [*name, self._key(pattern), *(self._odd() for _ in range(self.random.randrange(4)))]
        elif command not in ("select", "client|setname"):
            yield [*name, *(self._odd() for _ in range(self.random.randrange(2)))]

    def _key(self, pattern: str) -> str:
        last = self.random.choice(
            [self._counter(), "changed", *RESERVATIONS, "r:1", "n:1", "o:1", "m:1", "dirty", "proxy-1", "\0" * 9]
        )
        return pattern.replace("*", last)

    def _counter(self) -> str:
        return f"c:{self.random.choice(['a', 'b']) * 24}"

    def _odd(self) -> Any:
        return self.random.choice([self._number(), self.random.choice(TEXTS), self._counter()])

    def _number(self) -> str:
        return self.random.choice([*NUMBERS, str(YEAR_9999_US), str(time.time_ns() // 1000)])

    def _fcall(self, pattern: str) -> list[Any]:
        keys = [self._key(pattern) for _ in range(self.random.randrange(1, 4))]
        arguments = [self._odd() for _ in range(self.random.randrange(8))]
        return ["FCALL", self.random.choice(self.functions), len(keys), *keys, *arguments]

    def _xadds(self, stream: str) -> Iterator[list[Any]]:
        yield ["XADD", stream, "MAXLEN", "0", "*", "a", "b"]
        for entry in (self._usage(), self._settled(), self._denials(), {"id": self._odd(), "rows": self._odd()}):
            flat = [part for pair in entry.items() for part in pair]
            yield ["XADD", stream, self.random.choice(["*", "*", "*", f"{2**62}-1", "0-1"]), *flat]
        if self.random.random() < 0.3:
            yield ["XADD", stream, LAST, "a", "b"]

    def _usage(self) -> dict[str, Any]:
        """Return an entry with rows of its own and of others, with numbers that fit and whose sum does not."""
        now, ids = int(time.time() // 60), [self.project, "", ""]
        other = self.random.random() < 0.5
        project, token, policy = self.others if other else ids
        most = self.random.choice([2**50, 1, -(2**50), 2**63])
        row = [now, project, token, self.random.choice([policy, ""]), "", "requests", most, most, 0, most]
        rows = [row] * self.random.choice([1, 3, 4_096])
        return {"id": f"evil-{self.random.random()}", "instance": "proxy-1", "rows": json.dumps(rows)}

    def _settled(self) -> dict[str, Any]:
        project, token, _ = self.random.choice([self.others, [self.project, "", ""]])
        row = [int(time.time() // 60), project, token, "gpt-4o", "exact", 0, 0, *[2**50] * len(COUNT_NAMES)]
        broken = [row[0], project, "gpt-4o", "openai", "gpt-4o", 2**50, 2**50]
        texts = {name: json.dumps([it] * 900) for name, it in (("metered", row), ("broken", broken))}
        return {"id": f"evil-{self.random.random()}", "rows": "[]", **texts}

    def _denials(self) -> dict[str, Any]:
        project, token, policy = self.random.choice([self.others, [self.project, "", ""]])
        row = [
            f"dec-{self.random.random()}",
            time.time_ns() // 10**6,
            "limited",
            project,
            token,
            policy,
            "rpm",
            {"a": "<b>"},
        ]
        name = self.random.choice(["denials", "rows"])
        return {"instance": "<i>", name: json.dumps([row])}

    def _heartbeat(self, ident: str) -> Any:
        instant = self.random.choice([YEAR_9999_US, 0, -1, time.time_ns() // 1000, "x"])
        document = {"id": ident, "state": "ok", "seen_at_us": instant, "revision": self.random.choice([1, 2**53, -1])}
        more = {"host": "<b>" * self.random.choice([1, 99]), "store_id": "x.999999", "decisions": {"allowed": 2**70}}
        return self.random.choice([json.dumps(document | more), json.dumps(document), self._odd()])

    def _record(self) -> str:
        """Return the record of a reservation that charges a counter of others, or that names them."""
        project, token, policy = self.others
        limit = {"name": "rpm", "algorithm": "fixed_window", "quota": 9, "window_seconds": 3600}
        bound = {"key": f"sg:{{{project}}}:{self._counter()}", "limit": limit, "scope": "token", "policy_id": policy}
        head = {"v": 1, "project": project, "token": token, "instance": "proxy-1", "model": "\ud800"}
        cost = self.random.choice([1, 2**70, float("inf")])
        return f"{self._number()}|5|\n" + json.dumps({**head, "costs": [cost], "limits": [{**bound, "policy": "p"}]})


def send(client: Redis, commands: Sequence[list[Any]]) -> int:
    """Send commands, and return how many of them the store has executed."""
    done = 0
    for command in commands:
        try:
            client.execute_command(*command)
        except (ResponseError, ValueError):
            continue
        done += 1
    return done
