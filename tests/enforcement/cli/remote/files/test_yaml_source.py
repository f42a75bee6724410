"""``sluicegate validate``: several files at once, files of other tools, and how long a large one takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enforcement.cli import main
from enforcement.cli.remote.files import yaml_source
from enforcement.cli.remote.files.yaml_source import parse, read_yaml
from enforcement.policy_files.policy_file import FileTooLarge, PolicyFile, check_size
from enforcement.policy_files.source import InvalidFile

HEAD = "apiVersion: sluicegate/v1\n"
CHAT = f"{HEAD}project: {{slug: chat}}\npolicies:\n  - slug: chat--free\n    limits: []\n"


@pytest.fixture
def validate(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Any:
    """``validate(name=text)``: the exit status, and what `validate --json` prints about files with these texts."""
    monkeypatch.chdir(tmp_path)

    def run(*more: str, **texts: str) -> tuple[int, list[str]]:
        for name, text in texts.items():
            Path(f"{name}.yaml").write_text(text)
        status = main(["validate", "--json", *(f"{name}.yaml" for name in texts), *more])
        rows = json.loads(capsys.readouterr().out)["errors"]
        return status, [f"{row['file']}:{row['line']}: {row['field']}: {row['reason']}" for row in rows]

    return run


def test_two_files_of_one_project_are_refused(validate: Any) -> None:
    """As after a copy whose slug was forgotten. The one that is applied last would win."""
    status, errors = validate(chat=CHAT, robot=CHAT)

    assert status == 1
    assert errors == [
        "robot.yaml:2: project.slug: Must be in one file only, but the project chat is also in chat.yaml.",
        "robot.yaml:4: policies[0].slug: Must be in one file only, but the policy chat--free is also in chat.yaml.",
    ]
    assert validate("chat.yaml", chat=CHAT) == (0, [])


def test_a_file_that_cannot_be_read_hides_no_error_of_others(validate: Any) -> None:
    """The exit status says that not every file was checked."""
    status, errors = validate("none.yaml", ".", wrong=CHAT.replace("slug: chat}", "slug: 'No'}"))

    assert status == 2
    assert [error.split(": ")[0] for error in errors] == ["wrong.yaml:2", "none.yaml:0", ".:0"]
    assert errors[1].endswith("No such file or directory")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("project:\n\tslug: chat\n", "f.yaml:2: Must be YAML, in which a tab cannot indent a line. Use spaces."),
        (
            f"{HEAD}project: {{slug: a}}\npolicies:\n",
            "f.yaml:3: policies: Must be a list of at most 1,000 mappings, got",
        ),
        ("project: {slug: a}\n", "f.yaml:1: apiVersion: Must be sluicegate/v1, and is missing."),
        (f"{CHAT}---\n{CHAT}", "f.yaml:6: Must be one document, but another one begins here."),
        (
            CHAT.replace("[]", "[{name: a, quota: 1, window_seconds: 1, match: {header: x}}]"),
            "f.yaml:5: policies[0].limits[0].match.header: Unknown field. Must be one of: methods, path, attributes.",
        ),
        (
            CHAT.replace("[]", "[{name: a, quota: 1, window_seconds: 1, match: x}]"),
            "f.yaml:5: policies[0].limits[0].match: Must be an object",
        ),
        (CHAT.replace("[]", "[{name: '', quota: 1, window_seconds: 1}]"), "f.yaml:5: policies[0].limits[0].name: Must"),
    ],
)
def test_an_error_says_what_to_do(text: str, error: str) -> None:
    """In words of the file, also where a parser has its own."""
    with pytest.raises(Exception, match=r"f\.yaml:\d") as caught:
        parse("f.yaml", text)

    assert str(caught.value).startswith(error)


@pytest.mark.parametrize("space", [" ", "\t"])
def test_json_of_other_tools_is_read(space: str) -> None:
    """Which may be indented by tabs, or write a character beyond the first 65,536 as two escapes."""
    name = "\\ud83d\\ude00" if space == " " else "\U0001f600"
    file = parse(
        "f", f'{{\n{space}"apiVersion": "sluicegate/v1",\n{space}"project": {{"slug": "a", "name": "{name}"}}}}'
    )

    assert file.project == {"slug": "a", "name": "\U0001f600"}


@pytest.mark.parametrize(
    "text", ["a: 'x\n  y'\nb: [1, no, ~, 010, '1', \"\\u00e9\"]\nc: |\n  d\n\n  e\n", "", "x", "[]"]
)
def test_the_fast_parser_reads_what_the_slow_one_does(text: str, monkeypatch: Any) -> None:
    """With the same lines."""
    fast = read_yaml("f", text)
    monkeypatch.setattr(yaml_source, "_FAST", yaml_source.yaml.SafeLoader)

    assert yaml_source.yaml.__with_libyaml__
    assert read_yaml("f", text) == fast


@pytest.mark.parametrize("text", ["a: b: c\n", "a: [\n", "\ta: 1", "a: \x07", "a: *b", "a: 1\na: 2", "- a\nb: 1", "'"])
def test_both_parsers_refuse_the_same(text: str, monkeypatch: Any) -> None:
    """In the same words."""
    with pytest.raises(InvalidFile) as fast:
        read_yaml("f", text)
    monkeypatch.setattr(yaml_source, "_FAST", yaml_source.yaml.SafeLoader)

    with pytest.raises(InvalidFile) as slow:
        read_yaml("f", text)
    assert str(fast.value) == str(slow.value)


def test_an_export_that_could_not_be_read_again_is_refused() -> None:
    """It would be found out only when it is needed."""
    many = PolicyFile({"slug": "chat"}, {f"p{index}": {} for index in range(1_001)})

    with pytest.raises(FileTooLarge, match=r"at most 1,000 policies, and it would have 1,001\."):
        check_size(many, "")
    with pytest.raises(FileTooLarge, match="at most 8,388,608 bytes"):
        check_size(PolicyFile({"slug": "chat"}), "x" * 8_388_609)
