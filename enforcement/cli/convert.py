"""The command ``sluicegate convert``. It translates the rules of another rate limit service into policies."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Final

import yaml

from enforcement.cli.foreign_limitador import from_limitador
from enforcement.cli.foreign_limits import (
    Converted,
    InvalidRules,
    check_names,
    described,
    from_envoy,
)
from enforcement.cli.foreign_yaml import documents
from enforcement.cli.options import new_parser
from enforcement.service.rls_mapping import RlsMapping

DONE, LOSSY, UNREADABLE = 0, 1, 2
MAX_BYTES: Final = 4_194_304

_EPILOG: Final = """\
Each policy is printed as the REST API takes it. What has no counterpart is listed on standard error, and never guessed.

The policy of a domain or namespace is named after it. Make it the anonymous policy of a project of the same name: the
requests that a proxy describes without a token then fall under it. See the page "Envoy" of the documentation.

exit status:
  0  everything was translated
  1  something has no counterpart; the rest was translated
  2  a file cannot be read, or is of another kind
"""


def main(arguments: Sequence[str]) -> int:
    """Translate the files, print the policies, and return the exit status."""
    options = _parser().parse_args(arguments)
    read: Callable[[object], list[Converted]] = from_limitador if options.kind == "limitador" else _envoy
    policies: list[Converted] = []
    for name in options.files:
        try:
            policies += [policy for document in _documents(name) for policy in read(document)]
            check_names(policies)
        except (OSError, ValueError, yaml.YAMLError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            print(f"sluicegate convert: {name}: {reason}", file=sys.stderr)
            return UNREADABLE
    _print(policies, as_json=options.json)
    missing = [f"{policy.domain}: {sentence}" for policy in policies for sentence in policy.missing]
    for sentence in missing:
        print(sentence, file=sys.stderr)
    return LOSSY if missing else DONE


def _envoy(document: object) -> list[Converted]:
    return [from_envoy(document)]


def _documents(name: str) -> list[object]:
    """Return the documents of a YAML file. Raises ValueError, OSError or YAMLError."""
    if name == "-":
        text = sys.stdin.read(MAX_BYTES + 1)
    else:
        with open(name, encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise InvalidRules(f"must have at most {MAX_BYTES} bytes.")
    result = [document for document in documents(text) if document is not None]
    if not result:
        raise InvalidRules("has no document.")
    return result


def _print(policies: Sequence[Converted], *, as_json: bool) -> None:
    rows = list(described(policies))
    if as_json:
        print(json.dumps({"policies": rows}, indent=2))
    else:
        print(yaml.safe_dump({"policies": rows}, sort_keys=False, allow_unicode=True), end="")
    _print_mapping(policies)


def _print_mapping(policies: Sequence[Converted]) -> None:
    """Print the mapping file of the rate limit service, if names differ."""
    keys = {key: name for policy in policies for key, name in policy.keys.items()}
    projects = {policy.domain: policy.name for policy in policies if policy.domain != policy.name}
    # Entries that hold the token by default are attributes in these rules.
    shown = [key for key in RlsMapping().token if not any(key in policy.used for policy in policies)]
    renamed = len(shown) < len(RlsMapping().token)
    if keys or projects or renamed:
        print("The service needs a mapping file (SLUICEGATE_RLS_MAPPING) with:", file=sys.stderr)
    if renamed:
        print(f"\ntoken = {json.dumps(shown or ['sluicegate-token'])}", file=sys.stderr)
    for table, rows in (("attributes", keys), ("projects", projects)):
        if rows:
            lines = [f"{json.dumps(key)} = {json.dumps(name)}" for key, name in rows.items()]
            print(f"\n[{table}]", *lines, sep="\n", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "sluicegate convert",
        "Translate the rules of envoyproxy/ratelimit or Limitador into policies.",
        _EPILOG,
    )
    parser.add_argument("kind", choices=("envoy", "limitador"), help="whose files they are")
    parser.add_argument("files", metavar="FILE", nargs="+", help="YAML files; - reads standard input")
    parser.add_argument("--json", action="store_true", help="print JSON instead of YAML")
    return parser
