"""Translate the limits of Limitador into policies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from enforcement.cli.foreign_limits import Converted, InvalidRules, exactly
from enforcement.cli.foreign_yaml import integer
from enforcement.model.matching import InvalidMatch, Match

_LIMITADOR_FIELDS: Final = {"namespace", "max_value", "seconds", "name", "conditions", "variables", "id"}
_OPERAND: Final = r"(?:descriptors\[\d+\])?(?:\[['\"](?P<{0}k>[^'\"]+)['\"]\]|\.?(?P<{0}n>[A-Za-z_][A-Za-z0-9_.]*))"
_VARIABLE: Final = re.compile(_OPERAND.format("a"))
_EQUALS: Final = re.compile(rf"{_OPERAND.format('a')}\s*==\s*(?P<q>['\"])(?P<value>.*)(?P=q)")


def from_limitador(document: object) -> list[Converted]:
    """
    Translate the limits of Limitador, one policy for each namespace.

    Raises:
        InvalidRules: The document has another form.
    """
    rows = document.get("limits") if isinstance(document, Mapping) else document
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) and "namespace" in row for row in rows):
        raise InvalidRules("limits: must be a list of limits with a namespace, as in the files of Limitador.")
    by_namespace: dict[str, Converted] = {}
    for number, row in enumerate(rows, 1):
        namespace = row["namespace"]
        if not isinstance(namespace, str):
            raise InvalidRules(f"limit {number}: namespace must be a name.")
        _limitador_row(by_namespace.setdefault(namespace, Converted(namespace)), f"limit {number}", row)
    return list(by_namespace.values())


def _limitador_row(found: Converted, where: str, row: Mapping[str, Any]) -> None:
    for name in sorted(map(str, row.keys() - _LIMITADOR_FIELDS)):
        found.missing.append(f"{where}: {name} is not supported.")
    each, rules, fits = [], dict[str, str](), True
    for name in ("variables", "conditions"):
        if not isinstance(row.get(name) or [], list):
            raise InvalidRules(f"{where}: {name} must be a list.")
    for variable in row.get("variables") or ():
        matched = _VARIABLE.fullmatch(str(variable).strip())
        if matched is None:
            found.missing.append(f"{where}: the variable {variable!r} has no counterpart, so the limit is left out.")
            fits = False
        else:
            each.append(found.attribute(matched["ak"] or matched["an"]))
    for condition in row.get("conditions") or ():
        matched = _EQUALS.fullmatch(str(condition).strip())
        if matched is None or matched["q"] in matched["value"]:
            found.missing.append(f"{where}: the condition {condition!r} has no counterpart, so the limit is left out.")
            fits = False
        else:
            value = matched["value"]
            name = found.attribute(matched["ak"] or matched["an"])
            if rules.setdefault(name, value) != value:
                found.missing.append(f"{where}: two conditions contradict each other, so the limit is left out.")
                fits = False
    if not fits:
        return
    try:
        match = Match(attributes={name: exactly(rule) for name, rule in rules.items()})
    except InvalidMatch as exc:
        found.missing.append(f"{where}: {exc}")
        return
    name = row.get("name") or ".".join([*each, *rules.values()]) or "all"
    found.add(
        where,
        str(name),
        quota=integer(row.get("max_value")),
        window_seconds=integer(row.get("seconds")),
        match=match,
        partition_by=tuple(dict.fromkeys(each)),
    )
