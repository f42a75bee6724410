"""The mapping file of the rate limit service: what it may say, and what is refused with a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from enforcement.service import rls_mapping
from enforcement.service.rls_mapping import RlsMapping
from enforcement.service.settings import ServiceSettings
from tests.repository import ROOT

PAGE = (ROOT / "templates" / "docs" / "envoy.md").read_text()
CONFIGURATION = (ROOT / "docker" / "proxies" / "envoy" / "rls.yaml").read_text()


def example_of(module: str) -> str:
    """Return the indented example of a docstring."""
    return "".join(f"{line[4:]}\n" for line in module.splitlines() if line.startswith("    ") or not line)


def test_an_empty_file_is_the_default() -> None:
    """Every line is optional."""
    assert RlsMapping.parse("") == RlsMapping()


@pytest.mark.parametrize(
    "source",
    [
        example_of(rls_mapping.__doc__ or ""),
        *re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL),
    ],
    ids=["docstring", "page"],
)
def test_examples_are_valid(source: str) -> None:
    """Whoever copies an example has a file that works, and each of its lines says something."""
    mapping = RlsMapping.parse(source)

    assert (mapping.unit, mapping.after) == ("unit", "after")
    assert mapping.attributes.keys() >= {"remote_address"}
    assert "input_tokens" in mapping.costs.values()
    assert mapping.project("edge_gateway").project == "website"


def test_the_page_shows_what_the_configuration_has() -> None:
    """The excerpt is that of the file that the tests start Envoy with."""
    (excerpt,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)

    assert excerpt in CONFIGURATION


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("tokens = []", "tokens: must be one of token, unit, after, attributes, costs, projects."),
        ("token = 'token'", "token: must be a list of keys, got 'token'."),
        ("token = ['']", "token: must be a list of keys, got ['']."),
        ("unit = 5", "unit: must be the key of an entry, got 5."),
        ("after = []", "after: must be the key of an entry, got []."),
        ("attributes = []", "attributes: must be a table of keys and strings, got []."),
        ("[attributes]\na = 1", "attributes: must be a table of keys and strings, got {'a': 1}."),
        (
            "[attributes]\na = 'label.team'",
            "attributes.a: must not be a label, which only a token has, got 'label.team'.",
        ),
        ("[attributes]\na = ''", "attributes: must be a table of keys and strings, got {'a': ''}."),
        ("[costs]\na = 'Tokens'", "costs.a: must be 1 to 32 of the characters a-z 0-9 _ - and begin with a letter, "),
        ("[projects]\na = 'A B'", "projects.a: must be 1 to 63 lower-case letters, digits and hyphens, "),
        ("unit = 'a'\nafter = 'a'", "a: must stand for one thing, but is named twice."),
        ("unit = 'token'", "token: must stand for one thing, but is named twice."),
        ("[costs]\nremote_address = 'x'", "remote_address: must stand for one thing, but is named twice."),
        ("a = ", "Invalid value"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(tmp_path: Path, source: str, said: str) -> None:
    """The message of the command names the variable, the file and the rule."""
    path = tmp_path / "rls.toml"
    path.write_text(source)

    with pytest.raises(ValueError, match=re.escape(f"SLUICEGATE_RLS_MAPPING: {path}: {said}")):
        ServiceSettings.from_env({"SLUICEGATE_RLS_MAPPING": str(path)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, " cannot be read: No such file or directory."),
        (b"#" * 70_000, " must have at most 65536 bytes."),
        (b"\xff", ": 'utf-8' codec can't decode byte"),
    ],
)
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, content: bytes | None, said: str) -> None:
    """At the start, and not at the first request."""
    path = tmp_path / "rls.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ValueError, match=re.escape(f"SLUICEGATE_RLS_MAPPING: {path}{said}")):
        ServiceSettings.from_env({"SLUICEGATE_RLS_MAPPING": str(path)})
