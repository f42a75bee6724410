"""
The JSON Schema of a limit, with the rules between its fields as far as a schema can say them.

It is made from the table of the fields. The OpenAPI document and the schema of policy files both have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from enforcement.model.limit_fields import BY_NAME, FIELDS, REQUIRED, Field, Is, Schema, closed, weights_of
from enforcement.model.metered import TOKEN_UNITS

_INTEGERS: Final = {"week": ("[1-7]", 7), "month": (r"([1-9]|[12]\d|3[01])", 31)}
_STRINGS: Final = {"day": r"([01]\d|2[0-3]):[0-5]\d", "year": r"(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"}
_REST_ANCHOR: Final = {
    "oneOf": [
        {"type": "integer", "minimum": 1, "maximum": 31},
        {"type": "string", "pattern": r"^$|^[0-9]{2}[:-][0-9]{2}$"},
        {"type": "null"},
    ]
}
_EMPTY: Final = {"array": {"maxItems": 0}, "object": {"maxProperties": 0}}


def limit_schema(*, rest: bool = False) -> Schema:
    """
    Return the schema of a limit as a new dictionary.

    Args:
        rest: Whether it is that of REST, which takes the anchor of a week or month as an integer only, and has
            examples. In a file, people also write a string, such as ``"05"``.
    """
    required = [field.name for field in FIELDS if field.default is REQUIRED]
    return {
        **closed({field.name: _property(field, rest) for field in FIELDS}, *required),
        "description": "What is counted, how many are allowed, in which window, and for which requests.",
        "allOf": [
            {"anyOf": [_given("window_seconds", {"type": "integer"}), _given("calendar", {"type": "string"})]},
            *(_only_if(field, condition) for field in FIELDS for condition in field.only_if),
            *_anchors(rest),
            *_weights(),
        ],
    }


def _property(field: Field, rest: bool) -> Schema:
    default = {} if field.default in (REQUIRED, None, [], {}) else {"default": field.default}
    example = {"example": field.example} if rest and field.example is not None else {}
    schema = _REST_ANCHOR if rest and field.name == "anchor" else field.schema
    return {**schema, **default, "description": field.help, **example}


def _having(properties: dict[str, Schema], *required: str) -> Schema:
    """
    Return the schema of an object with such properties beside any others.

    Redocly takes a part of a schema that does not say so for one without others.
    """
    schema: Schema = {"properties": properties, "additionalProperties": True}
    return {**schema, "required": [*required]} if required else schema


def _given(name: str, value: Schema) -> Schema:
    return _having({name: value}, name)


def _only_if(field: Field, condition: Is) -> Schema:
    """Return the rule that a field has its default unless a condition holds, which a field left out may meet, too."""
    other = BY_NAME[condition.field]
    required = [] if other.default in condition.values else [other.name]
    met = _having({other.name: {"enum": list(condition.values)}}, *required)
    return {"if": met, "then": {}, "else": _having({field.name: _default_only(field)})}


def _default_only(field: Field) -> Schema:
    if field.is_nullable:
        is_text = "string" in field.schema["type"] and "enum" not in field.schema
        return {"enum": [None, ""]} if is_text else {"type": "null"}
    return dict(_EMPTY.get(field.schema.get("type", ""), {"const": field.default}))


def _anchors(rest: bool) -> Iterator[Schema]:
    """Yield the form of the anchor in each calendar that has one."""
    for calendar, (pattern, most) in _INTEGERS.items():
        anchor: dict[str, object] = {"type": ["integer", "null"], "minimum": 1, "maximum": most}
        if not rest:
            anchor |= {"type": ["integer", "string", "null"], "pattern": f"^$|^0*{pattern}$"}
        yield _if("calendar", calendar, {"anchor": anchor})
    for calendar, pattern in _STRINGS.items():
        yield _if("calendar", calendar, {"anchor": {"type": ["string", "null"], "pattern": f"^$|^{pattern}$"}})


def _weights() -> Iterator[Schema]:
    """Yield the classes that a unit of tokens has weights of."""
    for unit, classes in TOKEN_UNITS.items():
        yield _if("unit", unit, {"weights": weights_of(classes)})


def _if(name: str, value: str, then: Schema) -> Schema:
    return {"if": _given(name, {"const": value}), "then": _having(then)}
