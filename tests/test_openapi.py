"""The comparison of OpenAPI documents, by small ones."""

import json
from copy import deepcopy
from typing import Any

import pytest

from tests import openapi


def document() -> dict[str, Any]:
    """One operation, whose request and response refer to schemas."""
    sent = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "maxLength": 200},
            "mode": {"type": "string", "enum": ["enforce", "shadow"]},
            "quota": {"type": ["integer", "null"], "minimum": 0},
        },
    }
    shown = {"type": "object", "required": ["id", "name"], "properties": {"id": {"type": "string"}, "name": {}}}
    operation = {
        "parameters": [{"in": "query", "name": "page_size", "schema": {"type": "integer"}}],
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Sent"}}}},
        "responses": {"200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Shown"}}}}},
    }
    return {"paths": {"/things": {"post": operation}}, "components": {"schemas": {"Sent": sent, "Shown": shown}}}


def found(change) -> list[str]:
    """What breaks after ``change(operation, sent, shown)``."""
    new = deepcopy(document())
    change(new["paths"]["/things"]["post"], new["components"]["schemas"]["Sent"], new["components"]["schemas"]["Shown"])
    return list(openapi.breaking(document(), new))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda operation, sent, shown: operation["parameters"].clear(), "query page_size: was removed"),
        (
            lambda operation, sent, shown: operation["parameters"].append(
                {"in": "query", "name": "a", "required": True}
            ),
            "query a: became required",
        ),
        (lambda operation, sent, shown: operation["responses"].clear(), "200: was removed"),
        (lambda operation, sent, shown: sent["required"].append("quota"), "body.quota: became required"),
        (lambda operation, sent, shown: sent["properties"].pop("mode"), "body.mode: was removed"),
        (
            lambda operation, sent, shown: sent["properties"]["mode"]["enum"].remove("shadow"),
            'body.mode: value "shadow" is not allowed any more',
        ),
        (
            lambda operation, sent, shown: sent["properties"]["quota"].update(type="integer"),
            "body.quota: type null is not allowed any more",
        ),
        (
            lambda operation, sent, shown: sent["properties"]["name"].update(maxLength=100),
            "body.name: maxLength became 100",
        ),
        (lambda operation, sent, shown: sent["properties"]["quota"].update(minimum=1), "body.quota: minimum became 1"),
        (
            lambda operation, sent, shown: sent["properties"]["name"].update(pattern="^a"),
            "body.name: pattern became ^a",
        ),
        (lambda operation, sent, shown: shown["properties"].pop("id"), "200.id: was removed"),
        (lambda operation, sent, shown: shown["required"].remove("id"), "200.id: may be missing"),
        (
            lambda operation, sent, shown: shown["properties"]["id"].update(type="integer"),
            "200.id: type integer is new",
        ),
    ],
)
def test_what_breaks_a_client_is_told(change, line):
    """Whoever sends or reads what was documented must go on working."""
    assert found(change) == [f"POST /things {line}"]


@pytest.mark.parametrize(
    "change",
    [
        lambda operation, sent, shown: operation["parameters"].append({"in": "query", "name": "order"}),
        lambda operation, sent, shown: operation["responses"].update({"202": {}}),
        lambda operation, sent, shown: sent["properties"].update(more={"type": "string"}),
        lambda operation, sent, shown: sent["required"].clear(),
        lambda operation, sent, shown: sent["properties"]["mode"]["enum"].append("off"),
        lambda operation, sent, shown: sent["properties"]["name"].update(maxLength=300),
        lambda operation, sent, shown: shown["properties"].update(more={"type": "string"}),
        lambda operation, sent, shown: shown["required"].append("more"),
    ],
)
def test_an_addition_breaks_nobody(change):
    """Clients ignore fields that they do not know, and need not send what is new."""
    assert found(change) == []


def test_an_operation_that_goes_is_told():
    """By its method and address."""
    new = document()
    new["paths"] = {}

    assert list(openapi.breaking(document(), new)) == ["POST /things: was removed"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A document that is checked in, and one that the views describe, which misses an operation."""
    monkeypatch.setattr(openapi, "ROOT", tmp_path)
    monkeypatch.setattr(openapi, "DOCUMENT", tmp_path / "openapi.json")
    monkeypatch.setattr(openapi, "ALLOWED", tmp_path / "allowed.txt")
    monkeypatch.setattr(openapi, "allowed", lambda: set(openapi.ALLOWED.read_text().splitlines()))
    monkeypatch.setattr(openapi, "generated", lambda: {**document(), "paths": {}})
    openapi.DOCUMENT.write_text(openapi.as_text(document()))
    openapi.ALLOWED.write_text("")
    return tmp_path


def test_a_breaking_change_must_be_named(files, capsys):
    """Neither the check nor the writing passes before."""
    assert (openapi.main([]), openapi.main(["--write"])) == (1, 1)
    assert "breaks clients: POST /things: was removed" in capsys.readouterr().out
    openapi.ALLOWED.write_text("POST /things: was removed\n")

    assert (openapi.main([]), openapi.main(["--write"]), openapi.main([])) == (1, 0, 0)
    assert json.loads(openapi.DOCUMENT.read_text())["paths"] == {}


def test_a_difference_fails_the_check(files, monkeypatch, capsys):
    """Also one that breaks nobody: the document is what people read."""
    monkeypatch.setattr(openapi, "generated", lambda: {**document(), "info": {"title": "New"}})

    assert openapi.main([]) == 1
    assert "differs: /info" in capsys.readouterr().out
