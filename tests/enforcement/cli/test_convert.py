"""``sluicegate convert``: policies that decide as the documents of other rate limit services say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from enforcement import Anonymous, Limit, Limiter
from enforcement.cli import main
from enforcement.embedded import ValkeyServer
from enforcement.service.rls_mapping import RlsMapping
from enforcement.testing import Published, Store

# Everything that the configuration of envoyproxy/ratelimit says about which limit a descriptor has.
EDGE = """
domain: edge_gateway
descriptors:
  - key: database
    value: users
    rate_limit: {unit: second, requests_per_unit: 2}
  - key: remote_address
    rate_limit: {unit: minute, requests_per_unit: 3}
    descriptors:
      - key: PATH
        value: /login
        rate_limit: {name: login, unit: day, requests_per_unit: 1}
  - key: remote_address
    value: 192.0.2.66
    rate_limit: {unit: minute, requests_per_unit: 1}
    descriptors:
      - key: PATH
        value: /login
        rate_limit: {unit: day, requests_per_unit: 1}
  - key: tier
    value: gold*
    rate_limit: {unit: hour, requests_per_unit: 1}
  - key: tier
    value: "a[b]"
    rate_limit: {unit: month, requests_per_unit: 1}
  - key: tier
    value: test
    shadow_mode: true
    rate_limit: {unit: year, requests_per_unit: 0}
  - key: nothing
    rate_limit: {unlimited: true}
"""
# Second of the request, its entries, and whether that service answers OK.
EDGE_REQUESTS = [
    (0.0, {"database": "users"}, True),
    (0.1, {"database": "users"}, True),
    (0.9, {"database": "users"}, False),
    (0.9, {"database": "orders"}, True),
    (1.0, {"database": "users"}, True),
    (2.0, {"ip": "192.0.2.1"}, True),
    (2.0, {"ip": "192.0.2.2"}, True),
    (3.0, {"ip": "192.0.2.1"}, True),
    (4.0, {"ip": "192.0.2.1"}, True),
    (5.0, {"ip": "192.0.2.1"}, False),
    (6.0, {"ip": "192.0.2.66"}, True),
    (7.0, {"ip": "192.0.2.66"}, False),
    (59.9, {"ip": "192.0.2.1"}, False),
    (60.0, {"ip": "192.0.2.1"}, True),
    (61.0, {"ip": "192.0.2.3", "path": "/login"}, True),
    (62.0, {"ip": "192.0.2.3", "path": "/login"}, False),
    (62.0, {"ip": "192.0.2.4", "path": "/login"}, True),
    (62.0, {"ip": "192.0.2.3", "path": "/other"}, True),
    (63.0, {"tier": "golden"}, True),
    (63.0, {"tier": "gold"}, True),
    (64.0, {"tier": "golden"}, False),
    (64.0, {"tier": "silver"}, True),
    (65.0, {"tier": "a[b]"}, True),
    (66.0, {"tier": "a[b]"}, False),
    (66.0, {"tier": "ab"}, True),
    (66.0, {"tier": "ab"}, True),
    (67.0, {"tier": "test"}, True),
    (67.0, {"nothing": "at all"}, True),
]

TOYS = """
- namespace: toys
  max_value: 2
  seconds: 30
  conditions: ["req.method == 'POST'"]
  variables: ["user_id"]
- namespace: toys
  name: everybody
  max_value: 4
  seconds: 30
  conditions: []
  variables: []
"""
TOYS_REQUESTS = [
    (0.0, {"req.method": "POST", "user_id": "a"}, True),
    (1.0, {"req.method": "POST", "user_id": "a"}, True),
    (2.0, {"req.method": "POST", "user_id": "a"}, False),
    (3.0, {"req.method": "GET", "user_id": "a"}, True),
    (4.0, {"req.method": "POST", "user_id": "b"}, True),
    (5.0, {"req.method": "POST", "user_id": "c"}, False),
]

BEGIN_US = 1_800_000_000_000_000  # a multiple of every window below a month


def converted(capsys: pytest.CaptureFixture[str], kind: str, source: str, folder: Path) -> tuple[int, Any, str]:
    """Return the exit status, the policies and what was printed beside them."""
    (folder / "rules.yaml").write_text(source)
    status = main(["convert", kind, str(folder / "rules.yaml")])
    printed = capsys.readouterr()
    return status, yaml.safe_load(printed.out), printed.err


@pytest.mark.parametrize(
    ("kind", "source", "requests"), [("envoy", EDGE, EDGE_REQUESTS), ("limitador", TOYS, TOYS_REQUESTS)]
)
def test_policies_decide_as_the_document_says(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    server: ValkeyServer,
    kind: str,
    source: str,
    requests: Sequence[tuple[float, dict[str, str], bool]],
) -> None:
    """Each of the recorded requests is decided as the service decides it that the document was written for."""
    status, document, said = converted(capsys, kind, source, tmp_path)
    (policy,) = document["policies"]
    Store(server).clear()
    published, now_us = Published(server.url), [BEGIN_US]
    published.policy(policy["slug"], *(Limit.from_json(limit) for limit in policy["limits"]))
    published.project(policy["slug"], anonymous_policy=policy["slug"])

    decided = []
    with Limiter(server.url, clock=lambda: now_us[0]) as limiter:
        for second, attributes, _ in requests:
            now_us[0] = BEGIN_US + int(second * 1_000_000)
            decided.append(limiter.check(Anonymous(policy["slug"]), attributes=attributes).allowed)
    published.close()

    assert decided == [allowed for _, _, allowed in requests]
    assert status == 0, said


def test_names_that_differ_are_told_as_a_mapping_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The service finds the project of a domain and the attribute of a key by it."""
    _, _, said = converted(capsys, "envoy", EDGE, tmp_path)

    assert '[attributes]\n"PATH" = "path"\n' in said
    assert '[projects]\n"edge_gateway" = "edge-gateway"\n' in said


@pytest.mark.parametrize(
    ("rule", "missing"),
    [
        ("{key: a, value: b, rate_limit: {unit: hour, requests_per_unit: 9}}", "the tighter decides"),
        ("{key: a, value: b, rate_limit: {unit: minute, requests_per_unit: 1}}", "the tighter decides"),
        ("{key: a, value: b, rate_limit: {unlimited: true}}", "unlimited has no counterpart"),
        ("{key: a, value: b}", "a=b: has no limit there"),
        (
            "{key: a, value: b, shadow_mode: true, rate_limit: {unit: hour, requests_per_unit: 1}}",
            "the tighter decides",
        ),
        ("{key: path, value: '/c?d=%65', rate_limit: {unit: hour, requests_per_unit: 1}}", "without their query"),
        ("{key: b, rate_limit: {unit: fortnight, requests_per_unit: 1}}", "the unit 'fortnight' is not known"),
        ("{key: b, rate_limit: {unit: day, requests_per_unit: 1, replaces: [{name: c}]}}", "replaces is not"),
        ("{key: b, share_threshold: true, rate_limit: {unit: day, requests_per_unit: 1}}", "share_threshold is not"),
        ("{key: b, rate_limit: {unit: day, requests_per_unit: -1}}", "quota: "),
        ("{key: b, rate_limit: {unit: day, requests_per_unit: many}}", "quota: "),
        (
            "{key: b, rate_limit: {unit: hour, requests_per_unit: 2}, descriptors: ["
            "{key: c, descriptors: [{key: d, rate_limit: {unit: hour, requests_per_unit: 3}}]}]}",
            "b > c > d: the limit of b applies too, and the tighter decides.",
        ),
        (
            "{key: b, rate_limit: {unit: hour, requests_per_unit: 2}, descriptors: ["
            "{key: c, rate_limit: {unlimited: true}}]}",
            "b > c: unlimited has no counterpart, and the limit of b applies here too.",
        ),
        ("{key: b, descriptors: [{key: b, rate_limit: {unit: day, requests_per_unit: 1}}]}", "never met"),
    ],
)
def test_what_has_no_counterpart_is_listed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rule: str, missing: str
) -> None:
    """Nothing is left out in silence, and the exit status says that something was."""
    source = f"domain: d\ndescriptors:\n- {{key: a, rate_limit: {{unit: hour, requests_per_unit: 5}}}}\n- {rule}\n"

    status, document, said = converted(capsys, "envoy", source, tmp_path)

    assert status == 1
    assert missing in said
    assert document["policies"][0]["limits"][0]["quota"] == 5


@pytest.mark.parametrize(
    "parent",
    [
        "{unit: hour, requests_per_unit: 3}",
        "{unit: minute, requests_per_unit: 3}",
        "{unit: day, requests_per_unit: 72}",
        "{unit: hour, requests_per_unit: 1}, shadow_mode: true",
    ],
)
def test_a_parent_that_denies_nothing_more_is_not_listed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, parent: str
) -> None:
    """It admits as much as its child in each of its windows, or denies nothing at all."""
    child = "descriptors: [{key: bar, rate_limit: {unit: hour, requests_per_unit: 3}}]"
    source = f"domain: d\ndescriptors:\n- {{key: foo, rate_limit: {parent}, {child}}}\n"

    assert converted(capsys, "envoy", source, tmp_path)[0] == 0


def test_rules_below_a_value_are_compared_with_those_of_other_values(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """That service takes the rules below a value alone, and here both apply."""
    source = """
    domain: d
    descriptors:
    - {key: a, descriptors: [{key: b, rate_limit: {unit: hour, requests_per_unit: 5}}]}
    - {key: a, value: same, descriptors: [{key: b, rate_limit: {unit: hour, requests_per_unit: 5}}]}
    - {key: a, value: more, descriptors: [{key: b, rate_limit: {unit: hour, requests_per_unit: 9}}]}
    - {key: a, value: none, descriptors: [{key: c, rate_limit: {unit: hour, requests_per_unit: 1}}]}
    """

    _, _, said = converted(capsys, "envoy", source, tmp_path)

    assert said.splitlines() == [
        "d: a=more > b: the limit of other values of a applies too, and the tighter decides.",
        "d: a=none > b: has no limit there. The limit of other values of a applies here too.",
    ]


def test_scalars_are_what_that_service_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its values are strings, which a parser of YAML would take for numbers, dates or booleans."""
    values = ["010", "yes", "22:22", "1.0", "1_0", "0x1f", "2020-01-01", "True"]
    rows = [f"- {{key: a, value: {value}, rate_limit: {{unit: day, requests_per_unit: 1}}}}" for value in values]
    source = "\n".join(["domain: 2020", "descriptors:", *rows])

    status, document, _ = converted(capsys, "envoy", source, tmp_path)

    assert status == 0
    assert document["policies"][0]["slug"] == "2020"
    assert [it["match"]["attributes"]["a"] for it in document["policies"][0]["limits"]] == values


def test_anchors_and_merges_are_followed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Files of many rules share them."""
    source = """
    domain: d
    common: &common {unit: minute, requests_per_unit: 9}
    descriptors:
    - {key: a, rate_limit: *common}
    - {key: b, rate_limit: {<<: *common, requests_per_unit: 3}}
    """

    status, document, said = converted(capsys, "envoy", source, tmp_path)

    assert (status, said) == (1, "d: common: is not supported.\n")
    assert [it["quota"] for it in document["policies"][0]["limits"]] == [9, 3]


def test_keys_that_hold_tokens_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """By default the service would take such an entry for a token, and refuse it."""
    source = "domain: d\ndescriptors: [{key: api_key, rate_limit: {unit: day, requests_per_unit: 1}}]"

    _, _, said = converted(capsys, "envoy", source, tmp_path)

    (line,) = [line for line in said.splitlines() if line.startswith("token = ")]
    assert RlsMapping.parse(line).token == ("token", "authorization", "x-api-key")


@pytest.mark.parametrize("condition", ["req.method != 'GET'", "size(x) > 3", "a == 'b' && c == 'd'", "a == b"])
def test_conditions_that_are_not_understood_leave_the_limit_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, condition: str
) -> None:
    """A limit without its condition would fall on requests that it was not meant for."""
    row = {"namespace": "n", "max_value": 1, "seconds": 60, "conditions": [condition], "variables": []}

    status, document, said = converted(capsys, "limitador", json.dumps([row]), tmp_path)

    assert status == 1
    assert "has no counterpart, so the limit is left out" in said
    assert document["policies"][0]["limits"] == []


LAUGHS = "\n".join(
    [
        "domain: d",
        "l0: &l0 [{key: k0, value: v}, {key: k0}]",
        *(
            f"l{n}: &l{n} [{', '.join(f'{{key: k{n}, value: v{i}, descriptors: *l{n - 1}}}' for i in range(9))}]"
            for n in range(1, 9)
        ),
        "descriptors: *l8",
    ]
)
"""A few hundred bytes for 86 million descriptors."""


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("envoy", ""),
        ("envoy", LAUGHS),
        ("envoy", "domain: d\ndescriptors: " + "{a: " * 5_000),
        ("envoy", "domain: d\ndomain: e"),
        ("envoy", "domain: d\ndescriptors: [{key: a, value: b}, {key: a, value: b}]"),
        ("envoy", "domain: d\ndescriptors: [{key: ''}]"),
        ("envoy", "domain: d\ndescriptors: [{key: a, shadow_mode: maybe, rate_limit: {unit: day}}]"),
        ("envoy", "domain: d\ndescriptors: [{key: a, rate_limit: {unit: day}}, {key: A, rate_limit: {unit: day}}]"),
        ("envoy", "domain: a_b\n---\ndomain: a-b"),
        ("limitador", "[{namespace: n, max_value: 1, seconds: 1, variables: user_id}]"),
        ("limitador", "[{namespace: n, max_value: 1, seconds: 1, conditions: a == 'b'}]"),
        ("limitador", "[{namespace: [n], max_value: 1, seconds: 1}]"),
        ("envoy", "- a"),
        ("envoy", "domain: [1]"),
        ("envoy", "domain: '___'"),
        ("envoy", "domain: d\ndescriptors: {}"),
        ("envoy", "domain: d\ndescriptors: [1]"),
        ("envoy", "domain: d\ndescriptors: [{value: x}]"),
        ("envoy", "domain: d\ndescriptors: [{key: a, rate_limit: 5}]"),
        ("envoy", "a: b: c"),
        ("envoy", "!!python/object/apply:os.system [id]"),
        ("limitador", "domain: d"),
        ("limitador", "[1]"),
        ("limitador", "[{max_value: 1}]"),
    ],
    ids=lambda value: value[:60],
)
def test_another_document_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str, source: str
) -> None:
    """With one sentence that names the file."""
    status, document, said = converted(capsys, kind, source, tmp_path)

    assert status == 2
    assert document is None
    assert said.startswith(f"sluicegate convert: {tmp_path}/rules.yaml: ")
    assert "Traceback" not in said


def test_a_missing_file_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """By its name."""
    assert main(["convert", "envoy", "/nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "sluicegate convert: /nowhere.yaml: No such file or directory\n"
