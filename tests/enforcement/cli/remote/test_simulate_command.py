"""``sluicegate simulate``: the figures are those of a real limiter, and what is not known is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from enforcement import Limit, Limiter
from enforcement.cli import main
from enforcement.embedded import ValkeyServer

FILE = """\
apiVersion: sluicegate/v1
project: {{slug: chat}}
policies:
  - slug: free
    limits:
{limits}
overrides: {overrides}
"""
PER_MINUTE = "{name: per-minute, algorithm: fixed_window, quota: 3, window_seconds: 60}"
LINE = '{ip} - {user} [26/Nov/2026:12:00:{second:02} +0100] "{method} {path}?q=1 HTTP/1.1" {status} 2 "-" "curl"'


@pytest.fixture
def play(tmp_path: Path, capsys: Any) -> Any:
    """``play([limits], lines)``: simulate an access log, and return what is printed as JSON."""

    def run(limits: list[str], lines: list[str], *words: str, overrides: str = "[]") -> dict[str, Any]:
        (tmp_path / "f.yaml").write_text(
            FILE.format(limits="\n".join(f"      - {limit}" for limit in limits), overrides=overrides)
        )
        (tmp_path / "access.log").write_text("\n".join(lines) + "\n")
        status = main(["simulate", str(tmp_path / "f.yaml"), "--log", str(tmp_path / "access.log"), "--json", *words])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        found: dict[str, Any] = json.loads(printed.out)
        return found

    return run


def line(second: int, **changed: Any) -> str:
    usual = {"ip": "192.0.2.1", "user": "-", "method": "GET", "path": "/v1/chat", "status": 200}
    return LINE.format(second=second, **{**usual, **changed})


def limit_row(found: dict[str, Any], name: str = "per-minute") -> tuple[int, int, int]:
    (row,) = (row for row in found["limits"] if row["limit"] == name)
    return row["requests"], row["denied"], row["callers"]


def test_each_caller_has_counters_of_their_own(play: Any) -> None:
    """By the name of the user, else by the address. Both are limited alone."""
    lines = [line(second) for second in range(5)] + [line(second, user="ann") for second in range(4)]
    found = play([PER_MINUTE], lines)

    assert (found["requests"], found["denied"], found["callers"], found["limited_callers"]) == (9, 3, 2, 2)
    assert limit_row(found) == (9, 3, 2)
    assert found["most_affected"] == [
        {"caller": "192.0.2.1", "requests": 5, "denied": 2},
        {"caller": "ann", "requests": 4, "denied": 1},
    ]


def test_under_the_policy_of_a_project_all_share(play: Any) -> None:
    """The same requests, of which three pass altogether."""
    lines = [line(second, ip=f"192.0.2.{second}") for second in range(9)]

    assert play([PER_MINUTE], lines, "--per", "project")["denied"] == 6
    assert play([PER_MINUTE], lines)["denied"] == 0


def test_a_limit_judges_what_it_matches(play: Any) -> None:
    """By method, path without its query, and values that it counts apart."""
    limits = [
        "{name: posts, quota: 1, window_seconds: 60, match: {methods: [POST], path: /v1/*}}",
        "{name: by-ip, quota: 2, window_seconds: 60, partition_by: [ip]}",
    ]
    lines = [
        line(0),
        line(1, method="POST"),
        line(2, method="POST", ip="192.0.2.9"),
        line(3, method="POST", path="/v2"),
    ]
    found = play(limits, lines, "--per", "project")

    assert limit_row(found, "posts") == (2, 1, 1)
    assert limit_row(found, "by-ip") == (4, 1, 1)
    assert found["denied"] == 2


def test_a_denied_request_is_charged_to_no_limit(play: Any) -> None:
    """Two limits, of which the small one denies: the other one still has what it had."""
    limits = [
        "{name: small, quota: 1, window_seconds: 10}",
        "{name: large, quota: 2, window_seconds: 60}",
    ]

    assert play(limits, [line(0), line(1), line(2), line(10), line(20)])["denied"] == 3


def test_a_shadow_limit_denies_nothing(play: Any) -> None:
    """It says whom it would have denied."""
    shadow = PER_MINUTE.replace("}", ", mode: shadow}")
    found = play([shadow], [line(second) for second in range(5)])

    assert (found["denied"], limit_row(found)) == (0, (5, 2, 1))


def test_a_limit_charges_the_responses_that_it_names(play: Any) -> None:
    """As at settlement: an error costs nothing."""
    limit = PER_MINUTE.replace("}", ", charge_on: [2xx]}")
    lines = [line(second, status=500) for second in range(5)] + [line(second) for second in range(5, 10)]

    assert play([limit], lines)["denied"] == 2


def test_an_override_of_the_file_counts(play: Any) -> None:
    """With its quota in place of that of the limit."""
    overrides = "[{limit: free/per-minute, quota: 4, reason: launch}]"

    assert play([PER_MINUTE], [line(second) for second in range(5)], overrides=overrides)["denied"] == 1


def test_what_cannot_be_judged_is_named(play: Any) -> None:
    """With the reason, and not counted as passed."""
    limits = [
        PER_MINUTE,
        "{name: slots, algorithm: concurrency, quota: 1, window_seconds: 60}",
        "{name: tokens, quota: 1, window_seconds: 60, unit: tokens}",
        "{name: model, quota: 1, window_seconds: 60, partition_by: [model, label.team]}",
    ]

    assert play(limits, [line(0)])["not_judged"] == {
        "slots": "How long each request took is not known.",
        "tokens": "What each request cost in tokens is not known.",
        "model": "Of the requests, label.team, model is not known.",
    }


def test_lines_of_json_may_have_any_attribute(play: Any) -> None:
    """A member that is a string is one. Other lines are counted and named."""
    row = {"at": "2026-11-26T12:00:00Z", "caller": "ann", "model": "gpt-4", "status": 200}
    limit = "{name: per-minute, quota: 1, window_seconds: 60, match: {attributes: {model: gpt-*}}}"
    lines = [json.dumps(row), json.dumps({**row, "model": "other"}), json.dumps(row), "{", '{"at": 1}', ""]
    found = play([limit], lines)

    assert limit_row(found) == (2, 1, 1)
    assert re.fullmatch(r"2 lines are no requests, .* The first is .*access\.log:4\.", found["cautions"][0])


@pytest.mark.parametrize("text", ["", "GET / 200\n", "\x00\xff\n", LINE.replace("26/Nov", "31/Feb") + "\n"])
def test_a_log_without_requests_is_an_error(tmp_path: Path, capsys: Any, text: str) -> None:
    """As of another format. An empty result would look as if nobody were limited."""
    (tmp_path / "f.yaml").write_text(FILE.format(limits=f"      - {PER_MINUTE}", overrides="[]"))
    (tmp_path / "a.log").write_text(text)

    assert main(["simulate", str(tmp_path / "f.yaml"), "--log", str(tmp_path / "a.log")]) == 2
    assert "Must have at least one request." in capsys.readouterr().err


def usage_file(path: Path, *rows: dict[str, Any], step: str = "minute") -> str:
    usual = {"at": "2026-11-26T12:00:00Z", "token": "tok_1", "limit": None, "allowed": 0, "denied": 0}
    path.write_text(json.dumps({"step": step, "results": [{**usual, **row} for row in rows]}))
    return str(path)


def test_usage_is_spread_over_its_minutes(tmp_path: Path, capsys: Any) -> None:
    """Requests that were denied then count too, and rows of single limits do not. The result says what is not seen."""
    (tmp_path / "f.yaml").write_text(FILE.format(limits=f"      - {PER_MINUTE}", overrides="[]"))
    rows = [{"allowed": 3, "denied": 2}, {"token": "", "allowed": 3}, {"limit": "free/x", "allowed": 9}]
    path = usage_file(tmp_path / "usage.json", *rows)

    assert main(["simulate", str(tmp_path / "f.yaml"), "--usage", path]) == 0
    printed = capsys.readouterr()
    assert "2 of 8 requests denied (25.00 %)." in printed.out
    assert "1 of 2 callers limited." in printed.out
    assert "taken as evenly spread, so bursts within a minute are not seen." in printed.err


@pytest.mark.parametrize(
    "row", [{"allowed": -1}, {"allowed": 1.5}, {"allowed": 10**8}, {"at": "2026-11-26T12:00:00"}, {"at": 1}]
)
def test_usage_that_is_damaged_is_one_sentence(tmp_path: Path, capsys: Any, row: dict[str, Any]) -> None:
    """Also one with more requests than are played in a reasonable time."""
    (tmp_path / "f.yaml").write_text(FILE.format(limits=f"      - {PER_MINUTE}", overrides="[]"))

    assert main(["simulate", str(tmp_path / "f.yaml"), "--usage", usage_file(tmp_path / "u.json", row)]) == 2
    assert capsys.readouterr().err.startswith(f"sluicegate simulate: {tmp_path}/u.json: Must ")


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "sliding_log", "token_bucket"])
def test_the_figures_are_those_of_a_limiter(play: Any, valkey: ValkeyServer, algorithm: str) -> None:
    """With the same requests at the same times, against a real store."""
    lines = [line(second, user=("ann", "bob")[second % 3 % 2]) for second in range(60) for _ in range(second % 4)]
    limit = Limit(name="per-minute", algorithm=algorithm, quota=7, window_seconds=10)
    clock = [0]
    denied = 0
    with Limiter(valkey.url, clock=lambda: clock[0], timeout=5.0) as limiter:
        for second in range(60):
            for _ in range(second % 4):
                clock[0] = (1_795_690_800 + second) * 1_000_000
                key = f"{algorithm}:{('ann', 'bob')[second % 3 % 2]}"
                denied += not limiter.hit(limit, key).allowed

    found = play([json.dumps(limit.to_json())], lines)

    assert denied > 10
    assert found["denied"] == denied
