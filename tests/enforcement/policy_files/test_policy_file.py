"""Policy files: what they may say, which line an error names, and one canonical text for each meaning."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from enforcement.cli import main
from enforcement.cli.remote.files.yaml_source import parse, to_yaml
from enforcement.policy_files.policy_file import PolicyFile
from enforcement.policy_files.schema import schema
from enforcement.policy_files.source import InvalidFile, InvalidFiles
from tests.repository import ROOT

FILE = """\
apiVersion: sluicegate/v1
project:
  slug: chat
  policy: chat--free
policies:
  - slug: chat--free
    limits:
      - name: per-minute
        algorithm: fixed_window
        quota: 60
        window_seconds: 60
overrides:
  - limit: chat--free/per-minute
    quota: 600
    reason: launch week
"""


def errors_of(text: str) -> list[str]:
    """Return the errors of a file, each as line, field and rule."""
    try:
        parse("f.yaml", text)
    except InvalidFiles as exc:
        return [str(error) for error in exc.errors]
    except InvalidFile as exc:
        return [str(exc)]
    return []


def changed(old: str, new: str) -> str:
    assert FILE.count(old) == 1
    return FILE.replace(old, new)


def test_a_file_is_its_own_canonical_text() -> None:
    """With every default left out, and one order."""
    assert to_yaml(parse("f.yaml", FILE)) == FILE


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("quota: 60\n", "quota: 1.5\n", "10: policies[0].limits[0].quota: Must be an integer from 0 to"),
        ("quota: 60\n", "quota: 060\n", "10: policies[0].limits[0].quota: Must be an integer from 0 to"),
        (
            "quota: 60\n",
            "unit: micros\n        quota: 500.00\n",
            "11: policies[0].limits[0].quota: Must be an integer from 0 to 9007199254740991, got '500.00'. Micros are "
            "millionths of the currency, so that 500.00 is 500000000.",
        ),
        ("quota: 60\n", "quota: yes\n", "10: policies[0].limits[0].quota: Must be an integer from 0 to"),
        ("quota: 60\n", "qouta: 60\n", "10: policies[0].limits[0].qouta: Unknown field. Did you mean quota?"),
        ("policies:", "polices:", "5: polices: Unknown field. Did you mean policies?"),
        ("window_seconds: 60", "window_seconds: 0", "11: policies[0].limits[0].window_seconds: Must last between"),
        ("window_seconds: 60", "quota: 61", "11: policies[0].limits[0].quota: Must be given once."),
        ("  slug: chat\n", "  slug: no way\n", "3: project.slug: Must be 1 to 63 lower-case letters"),
        ("  slug: chat\n", "  slug: 007\n  active: no\n", "4: project.active: Must be true or false, got 'no'."),
        ("  slug: chat\n", "  name: Chat\n", "2: project.slug: Is required."),
        (
            "  slug: chat\n",
            '  slug: chat\n  name: "a\\u202eb"\n',
            "4: project.name: Must have printable characters only",
        ),
        (
            "quota: 600",
            "ends_at: '0001-01-01T00:00:00+14:00'\n    quota: 600",
            "14: overrides[0].ends_at: Must be an RFC 3339 time",
        ),
        ("quota: 600", "ends_at: 2026-12-31\n    quota: 600", "14: overrides[0].ends_at: Must be an RFC 3339 time"),
        ("reason: launch week", "reason: 12", "15: overrides[0].reason: Must be a string, got 12. Put it in quotes."),
        ("reason: launch week", "reason: [", "16: Must be YAML: "),
        ("reason: launch week", "? [a]\n    : b", "15: overrides[0]: A key must be a string, got a list or a mapping."),
        ("reason: launch week", "<<: {a: 1}", "15: overrides[0].<<: Unknown field."),
        ("reason: launch week", "reason: !!python/name:os.system x", "15: Must have no tag"),
        ("reason: launch week", "reason: &a x", "15: Must have no anchor and no alias."),
        ("reason: launch week", "reason: x\n---\na: b", "16: Must be one document, but another one begins here."),
        ("reason: launch week", "reason: x\x07", "15: Must not contain the character U+0007."),
        ("reason: launch week", f"reason: {'[' * 20}{']' * 20}", "15: overrides[0].reason"),
        (
            "overrides:\n",
            "token_overrides:\n  - token: sg_live_secret\n    limit: a/b\n    quota: 1\n    reason: x\noverrides:\n",
            "13: token_overrides[0].token: Must be the id of a token, which begins with tok_.",
        ),
        ("chat--free/per-minute", "chat--free/per-hour", "13: overrides[0].limit: Must be a limit of the policy"),
        ("policies:", "global: chat--free\npolicies:", "5: global: Must be left out of the file of a project"),
        ("sluicegate/v1", "sluicegate/v2", "1: apiVersion: Must be sluicegate/v1, got 'sluicegate/v2'."),
    ],
)
def test_an_error_names_line_field_and_rule(old: str, new: str, error: str) -> None:
    """A file is wrong as a whole, and nothing in it is guessed."""
    found = errors_of(changed(old, new))

    assert any(one.startswith(f"f.yaml:{error}") for one in found), found


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "f.yaml:1: Must be a mapping of apiVersion"),
        ("- a\n", "f.yaml:1: Must be a mapping of apiVersion"),
        ("apiVersion: sluicegate/v1\n", "f.yaml:1: Exactly one of project and shared must be given."),
        ("[" * 5_000, "f.yaml:1: [0][0][0]"),
        ("apiVersion: sluicegate/v1\nshared: no\n", "f.yaml:2: shared: Must be true, got 'no'."),
        ("apiVersion: sluicegate/v1\nshared: true\noverrides: []\n", "f.yaml:3: overrides: Must be left out"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "f.yaml:1: Must have no anchor and no alias."),
    ],
    ids=["empty", "list", "neither", "deep", "no", "overrides", "aliases"],
)
def test_a_file_that_is_no_policy_file_is_refused(text: str, error: str) -> None:
    """Also one that only costs memory or depth."""
    assert errors_of(text)[0].startswith(error)


def test_every_error_of_a_file_is_named() -> None:
    """In the order of their lines, so that a person mends all of them at once."""
    text = changed("slug: chat\n", "slug: Chat\n").replace("quota: 600", "quota: -1").replace("60\n", "x\n", 1)

    assert [int(one.split(":")[1]) for one in errors_of(text)] == [3, 10, 14]


def test_two_objects_of_one_name_are_refused() -> None:
    """None of them would win in silence."""
    twice = FILE.replace("overrides:\n", "  - {slug: chat--free, limits: []}\noverrides:\n")
    limit = "      - {name: per-minute, quota: 1, window_seconds: 1}\n"

    assert errors_of(twice) == ["f.yaml:12: policies[1].slug: Must be given once, got chat--free twice."]
    assert "got per-minute twice" in errors_of(FILE.replace("overrides:\n", f"{limit}overrides:\n"))[0]


@pytest.mark.parametrize("text", ["\ufeff" + FILE, FILE.replace("\n", "\r\n")], ids=["bom", "crlf"])
def test_marks_and_line_ends_of_other_systems_are_read(text: str, tmp_path: Any, capsys: Any) -> None:
    """A byte order mark, and CRLF."""
    (tmp_path / "f.yaml").write_bytes(text.encode())

    assert main(["validate", str(tmp_path / "f.yaml")]) == 0
    assert capsys.readouterr().out == "1 valid file.\n"


def test_validate_names_what_is_wrong_in_each_file(tmp_path: Any, capsys: Any) -> None:
    """Also in bytes that are no text, and as JSON. Escapes of a terminal are shown and not obeyed."""
    (tmp_path / "a.yaml").write_bytes(b"a: 1\nb: \xff\n")
    (tmp_path / "b.yaml").write_text(changed("quota: 60\n", '"qu\\e[2J": 60\n'))
    names = [str(tmp_path / name) for name in ("a.yaml", "b.yaml")]

    assert main(["validate", *names]) == 1
    shown = capsys.readouterr().err
    assert main(["validate", "--json", *names]) == 1
    rows = json.loads(capsys.readouterr().out)["errors"]

    assert "a.yaml:2: Must be UTF-8, got the byte 0xFF." in shown
    assert "\x1b" not in shown
    assert "\\x1b[2J: Unknown field" in shown
    assert {row["line"] for row in rows} == {2, 10}


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Any, capsys: Any) -> None:
    """And the exit status says that nothing was checked."""
    assert main(["validate", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err == f"sluicegate validate: {tmp_path}/none.yaml: No such file or directory\n"


# What a file may say.

# Without a search for the smallest failure, which takes minutes.
PHASES = [Phase.explicit, Phase.generate]

TEXT = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=12).filter(str.strip)
# Words that some reader of YAML takes for something else.
WORDS = TEXT | st.sampled_from(
    ["no", "on", "null", "~", "010", "1e3", "22:22", "2026-12-31", "- a", "a: b", "#a", "'", " a "]
)
ATTRIBUTES = st.sampled_from(["model", "no", "null"])
NAMES = st.sampled_from(["a", "no", "x-1", "null", "10"])
LIMITS = st.fixed_dictionaries(
    {"quota": st.integers(0, 10**6), "window_seconds": st.integers(1, 86_400)},
    optional={
        "algorithm": st.sampled_from(["fixed_window", "sliding_window", "sliding_log", "token_bucket"]),
        "mode": st.sampled_from(["enforce", "shadow"]),
        "unit": st.sampled_from(["requests", "tokens"]),
        "partition_by": st.just(["ip"]),
        "match": st.fixed_dictionaries(
            {}, optional={"path": st.just("/v1/*"), "attributes": st.dictionaries(ATTRIBUTES, WORDS, max_size=3)}
        ),
        "burst": st.none(),
    },
)
POLICIES = st.dictionaries(
    NAMES,
    st.tuples(WORDS, st.text(st.sampled_from("ab \n:#-"), max_size=12), st.dictionaries(NAMES, LIMITS, max_size=3)),
    max_size=3,
)


@st.composite
def files(draw: Any) -> PolicyFile:
    """Return any policy file, read from JSON, which is YAML too."""
    policies = [
        {
            "slug": slug,
            "name": name,
            "description": text,
            "limits": [{"name": one, **limit} for one, limit in limits.items()],
        }
        for slug, (name, text, limits) in draw(POLICIES).items()
    ]
    project = {
        "slug": draw(NAMES),
        "name": draw(WORDS),
        "active": draw(st.booleans()),
        "policy": draw(st.none() | NAMES),
    }
    values = {"apiVersion": "sluicegate/v1", "project": project, "policies": policies}
    limits = {f"{one['slug']}/{limit['name']}" for one in policies for limit in one["limits"]} | {"elsewhere/a"}
    override = st.fixed_dictionaries(
        {"limit": st.sampled_from(sorted(limits)), "quota": st.integers(0, 9), "reason": WORDS},
        optional={"ends_at": st.just("2099-01-01T01:00:00+01:00"), "burst": st.just(3)},
    )
    values["overrides"] = draw(st.lists(override, max_size=2, unique_by=lambda one: one["limit"]))
    of_token = st.builds(lambda one, token: {**one, "token": f"tok_{token}"}, override, st.sampled_from("ab"))
    if draw(st.booleans()):
        unique = st.lists(of_token, max_size=3, unique_by=lambda one: (one["limit"], one["token"]))
        values["token_overrides"] = draw(unique)
    return parse("f.yaml", json.dumps(values, ensure_ascii=False))


@st.composite
def shared_files(draw: Any) -> PolicyFile:
    """Return any file of shared policies, which may choose the global policy, or none, or say nothing of it."""
    policies = [
        {"slug": slug, "limits": [{"name": one, **limit} for one, limit in limits.items()]}
        for slug, (_, _, limits) in draw(POLICIES).items()
    ]
    values = {"apiVersion": "sluicegate/v1", "shared": True, "policies": policies}
    values |= draw(st.fixed_dictionaries({}, optional={"global": st.none() | NAMES}))
    return parse("f.yaml", json.dumps(values, ensure_ascii=False))


@settings(max_examples=25, deadline=None, phases=PHASES)
@given(files() | shared_files())
def test_reading_what_was_written_changes_nothing(file: PolicyFile) -> None:
    """So an export that is read again is equal, and its text is canonical."""
    text = to_yaml(file, "https://limits.example/schema.json")

    assert parse("f.yaml", text) == file
    assert to_yaml(parse("f.yaml", text), "https://limits.example/schema.json") == text
    jsonschema.validate(file.as_values(), schema())


def test_the_published_schema_is_that_of_the_command(capsys: Any) -> None:
    """The control plane serves the file that `sluicegate schema` prints."""
    assert main(["schema"]) == 0
    path = ROOT / "controlplane" / "static" / "controlplane" / "policy-file.schema.json"

    assert path.read_text() == capsys.readouterr().out
    jsonschema.Draft202012Validator.check_schema(schema())
