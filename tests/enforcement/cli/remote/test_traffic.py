"""The requests that ``sluicegate simulate`` plays: where they are read from, and by whose overrides they are judged."""

from __future__ import annotations

import gzip
import json
import os
import random
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from io import BufferedReader, BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enforcement.cli import main

FILE = """\
apiVersion: sluicegate/v1
project: {slug: chat}
policies:
  - slug: free
    limits:
      - {name: per-minute, quota: 3, window_seconds: 60}
"""
START = datetime(2026, 11, 26, 12, tzinfo=UTC)


def line(seconds: float, user: str = "ann", zone: str = "+0000") -> str:
    at = (START + timedelta(seconds=seconds)).strftime("%d/%b/%Y:%H:%M:%S")
    return f'192.0.2.1 - {user} [{at} {zone}] "GET /v1 HTTP/1.1" 200 2 "-" "curl"\n'


@pytest.fixture
def simulate(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Any:
    """``simulate("--log", path)``: the exit status, what is printed as JSON, and the errors."""
    monkeypatch.chdir(tmp_path)
    Path("f.yaml").write_text(FILE)

    def run(*words: str, file: str = "") -> tuple[int, dict[str, Any], str]:
        if file:
            Path("f.yaml").write_text(file)
        status = main(["simulate", "f.yaml", "--json", *words])
        printed = capsys.readouterr()
        return status, json.loads(printed.out or "{}"), printed.err

    return run


def by_file(raw: bytes) -> str:
    Path("access.log").write_bytes(raw)
    return "access.log"


def by_gzip(raw: bytes) -> str:
    Path("access.log.1").write_bytes(gzip.compress(raw))
    return "access.log.1"


def by_pipe(raw: bytes) -> str:
    """As in ``--log <(zcat ...)``."""
    os.mkfifo("pipe")
    threading.Thread(target=lambda: Path("pipe").write_bytes(raw), daemon=True).start()
    return "pipe"


@pytest.mark.parametrize("written", [by_file, by_gzip, by_pipe])
def test_a_log_is_read_to_its_last_line(simulate: Any, written: Any) -> None:
    """A pipe cannot be read twice. The log of yesterday is compressed."""
    raw = "".join(line(index) for index in range(1_000)).encode()
    status, found, errors = simulate("--log", written(raw))

    assert (status, errors) == (0, "")
    assert (found["requests"], found["denied"], found["cautions"]) == (1_000, 949, [])


@pytest.mark.parametrize("option", ["--log", "--usage"])
def test_a_hyphen_is_standard_input(simulate: Any, monkeypatch: Any, option: str) -> None:
    """So that one command can print what the other reads."""
    row = {"at": START.isoformat(), "token": "ann", "limit": None, "allowed": 4, "denied": 1}
    text = {"--log": line(0) * 5, "--usage": json.dumps({"step": "minute", "results": [row]})}[option]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BufferedReader(BytesIO(text.encode()))))

    assert simulate(option, "-")[1]["denied"] == 2


def test_a_damaged_archive_is_one_sentence(simulate: Any) -> None:
    """As after a copy that was cut."""
    Path("a.gz").write_bytes(gzip.compress("".join(map(line, range(9_999))).encode())[:-2_000])

    status, _, errors = simulate("--log", "a.gz")
    assert (status, errors.count("\n")) == (2, 1)
    assert "a.gz: Must be a whole file of gzip, but is damaged after line " in errors
    assert "Must be a whole file of gzip" in simulate("--usage", "a.gz")[2]


def test_a_log_in_another_order_is_said(simulate: Any) -> None:
    """The figures would look right. A server writes requests that took long a little late, which changes little."""
    Path("late.log").write_text("".join(map(line, (0, 30, 1, 90))))
    Path("turned.log").write_text("".join(map(line, (300, 240, 0))))

    assert simulate("--log", "late.log")[1]["cautions"] == []
    assert simulate("--log", "turned.log")[1]["cautions"] == [
        "1 requests are more than a minute earlier than one before them. Sort the log by time."
    ]


def test_zones_of_a_log_are_read(simulate: Any) -> None:
    """Six requests of one instant, each written in another zone, and three of an hour later."""
    zones = [f"{'-' if hours < 0 else '+'}{abs(hours):02}30" for hours in (-11, -3, 0, 5, 13)]
    offsets = [timedelta(hours=int(zone[:3]), minutes=30 * (-1 if zone[0] == "-" else 1)) for zone in zones]
    same = [line(offset.total_seconds(), zone=zone) for zone, offset in zip(zones, offsets, strict=True)]
    Path("a.log").write_text("".join([*same, line(0), *[line(3_600)] * 3]))

    found = simulate("--log", "a.log")[1]
    assert (found["requests"], found["denied"], found["cautions"]) == (9, 3, [])


@pytest.mark.parametrize("year", ["0001", "1969", "2101", "9999"])
def test_an_instant_that_no_request_had_is_no_request(simulate: Any, year: str) -> None:
    """Around some of them no window of a calendar can be found."""
    Path("a.log").write_text(line(0) + line(0).replace("2026", year))
    Path("a.json").write_text(f'{{"at": "2026-01-01T00:00:00Z"}}\n{{"at": "{year}-01-01T00:00:00+14:00"}}\n')
    month = FILE.replace("window_seconds: 60", "calendar: month, time_zone: Asia/Tokyo, rollover: 2")

    for path in ("a.log", "a.json"):
        found = simulate("--log", path, file=month)[1]
        assert found["requests"] == 1, path
        assert found["cautions"][0].startswith("1 lines are no requests")


def test_overrides_of_tokens_judge_the_requests_of_these_tokens(simulate: Any) -> None:
    """An override that has ended does not, as a plan says that it is to be removed."""
    overrides = (
        "overrides:\n  - {limit: free/per-minute, quota: 4, reason: x}\n"
        "token_overrides:\n"
        "  - {token: tok_1, limit: free/per-minute, quota: 9, reason: x}\n"
        "  - {token: tok_2, limit: free/per-minute, quota: 9, reason: x, ends_at: '2020-01-01T00:00:00Z'}\n"
    )
    rows = [
        {"at": START.isoformat(), "token": token, "limit": None, "allowed": 10, "denied": 0}
        for token in ("tok_1", "tok_2", "tok_3")
    ]
    Path("usage.json").write_text(json.dumps({"step": "minute", "results": rows}))

    def denied(file: str) -> dict[str, int]:
        affected = simulate("--usage", "usage.json", file=file)[1]["most_affected"]
        return {row["caller"]: row["denied"] for row in affected}

    assert denied(FILE) == {"tok_1": 7, "tok_2": 7, "tok_3": 7}
    assert denied(FILE + overrides) == {"tok_1": 1, "tok_2": 6, "tok_3": 6}
    assert denied(FILE + overrides.replace("reason: x}\nt", "reason: x, ends_at: '2020-01-01T00:00:00Z'}\nt")) == {
        "tok_1": 1,
        "tok_2": 7,
        "tok_3": 7,
    }


def test_callers_share_what_the_file_gives_to_all_of_them(simulate: Any) -> None:
    """As the policy of the project, or the global one. An option says otherwise."""
    Path("a.log").write_text("".join(line(index, user=f"caller-{index % 3}") for index in range(9)))
    of_project = FILE.replace("slug: chat", "slug: chat, policy: free")
    of_all = FILE.replace("project: {slug: chat}", "shared: true\nglobal: free")
    denied = {
        (name, words): simulate("--log", "a.log", *words, file=file)[1]["denied"]
        for name, file in (("tokens", FILE), ("project", of_project), ("all", of_all))
        for words in ((), ("--per", "caller"), ("--per", "project"))
    }

    assert [denied[name, ()] for name in ("tokens", "project", "all")] == [0, 6, 6]
    assert {denied[name, ("--per", "caller")] for name in ("tokens", "project", "all")} == {0}
    assert {denied[name, ("--per", "project")] for name in ("tokens", "project", "all")} == {6}
    assert simulate("--log", "a.log", file=of_project)[1]["cautions"][0].startswith("All callers share the counters")


def test_a_policy_that_cannot_be_judged_is_an_error(simulate: Any) -> None:
    """A result without denials would look as if it limited nobody."""
    Path("a.log").write_text(line(0))
    status, _, errors = simulate("--log", "a.log", file=FILE.replace("window_seconds", "unit: tokens, window_seconds"))

    assert status == 2
    assert "per-minute: What each request cost in tokens is not known." in errors
    no_limits = FILE[: FILE.index("    limits")] + "    limits: []\n"
    assert "It has none." in simulate("--log", "a.log", file=no_limits)[2]


def test_usage_of_single_limits_is_refused(simulate: Any) -> None:
    """It has a part of the requests only, and said that there was none."""
    row = {"at": START.isoformat(), "token": "tok_1", "limit": "free/x", "allowed": 9, "denied": 0}
    Path("usage.json").write_text(json.dumps({"step": "minute", "results": [row]}))

    assert "prints without --limit" in simulate("--usage", "usage.json")[2]


def test_who_would_have_been_limited_and_how_often(simulate: Any) -> None:
    """As a count by hand says, for windows of an hour of any callers, of which some share a minute of usage."""
    rng = random.Random(7)
    rows, expected = [], Counter[str]()
    for hour in range(4):
        left = dict.fromkeys(("a", "b", "c", ""), 50)
        for minute in range(60):
            for token in left:
                count = rng.choice((0, 0, 1, 3))
                at = (START + timedelta(hours=hour, minutes=minute)).isoformat()
                rows.append({"at": at, "token": token, "limit": None, "allowed": count, "denied": 0})
                passed = min(count, left[token])
                left[token] -= passed
                expected[token or "anonymous"] += count - passed
    Path("usage.json").write_text(json.dumps({"step": "minute", "results": rng.sample(rows, len(rows))}))
    file = FILE.replace("quota: 3, window_seconds: 60", "quota: 50, window_seconds: 3600")
    status, found, _ = simulate("--usage", "usage.json", file=file)

    assert status == 0
    assert found["requests"] == sum(row["allowed"] for row in rows)
    assert {row["caller"]: row["denied"] for row in found["most_affected"]} == +expected
    assert found["denied"] == expected.total() > 50
