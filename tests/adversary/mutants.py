"""
Bugs of earlier releases, each of which let a consumer get more than a budget holds.

    python -m tests.adversary mutants

puts them back one by one, into the process of the proxy alone, and plays the scripts that have to notice.
``python -m tests.adversary.mutants NAME ...`` is the command ``sluicegate proxy`` with one of them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, NamedTuple

from tests.repository import ROOT


class Mutant(NamedTuple):
    """
    A bug.

    Attributes:
        name: A word or two.
        finding: Where it was found: a number of the review of metering, or a name of that of recorded traffic.
        changes: Each a module, a text that stands once in it, and what stood there before.
        scripts: Those that have to notice.
    """

    name: str
    finding: str
    changes: tuple[tuple[str, str, str], ...]
    scripts: tuple[str, ...]


def _in(module: str, *changes: str) -> tuple[tuple[str, str, str], ...]:
    """Return pairs of old and new texts as changes of a module."""
    pairs = zip(changes[::2], changes[1::2], strict=True)
    return tuple((f"enforcement.{module}", old, new) for old, new in pairs)


_SETTLEMENT, _BOUND, _TEXT = "metering.settlement", "metering.bound", "metering.formats.text"

MUTANTS = (
    Mutant(
        "refund of what nobody saw",
        "1",
        _in(_SETTLEMENT, "            estimate.bound\n            or self", "            self"),
        ("leaves_after_text", "leaves_after_text_free", "meets_a_break", "hears_no_usage"),
    ),
    Mutant(
        "refund of answers in one piece",
        "1",
        _in(
            _SETTLEMENT,
            "            estimate.bound\n            or self",
            "            self",
            "self._asked is not None and self._asked.hides_output(whole=self._is_whole)",
            "False",
        ),
        ("leaves_before_the_piece", "leaves_before_the_piece_free", "hears_nothing"),
    ),
    Mutant(
        "refund when reading on is given up",
        "2",
        _in(
            _SETTLEMENT,
            "            estimate.bound\n            or self",
            "            (estimate.bound and not self._left_at_us)\n            or self",
        ),
        ("leaves_a_filler", "leaves_in_a_crowd"),
    ),
    Mutant(
        "a gateway's word is the provider's",
        "1",
        _in(_SETTLEMENT, "frozenset((408, 499, 502, 504, *range(520, 528)))", "frozenset()"),
        ("meets_a_gateway", "hears_nothing"),
    ),
    Mutant(
        "usage of a message that runs",
        "1",
        _in(
            "metering.formats.anthropic",
            "self.is_final = self.has_stopped and self.has_delta and self.usage is not None",
            "self.is_final = self.usage is not None",
        ),
        ("meets_a_broken_message",),
    ),
    Mutant(
        "usage of Gemini that runs",
        "1",
        _in(
            "metering.formats.gemini",
            "self.is_final = self.has_finished and not self.has_failed and self.answers == 1",
            "self.is_final = True",
        ),
        ("meets_a_break", "hears_no_end"),
    ),
    Mutant(
        "the first of many answers is the last word",
        "design",
        _in("metering.formats.gemini", "and self.answers == 1", ""),
        ("leaves_the_others",),
    ),
    Mutant(
        "tiers are not in the bound",
        "3",
        _in(_BOUND, "(type(value) is str and value.lower() in usual)", "type(value) is str"),
        ("asks_for_unknown_speed",),
    ),
    Mutant(
        "tiers are not charged",
        "3",
        _in("metering.formats.reading", "not in _USUAL:\n            others", "is name:\n            others"),
        ("asks_for_a_tier", "asks_for_speed"),
    ),
    Mutant(
        "sound is charged as text",
        "3",
        _in("metering.formats.openai", 'frozenset(("audio_tokens", "image_tokens", "video_tokens"))', "frozenset()"),
        ("asks_for_sound", "sends_sound"),
    ),
    Mutant(
        "pictures of Gemini are charged as text",
        "F1",
        _in("metering.formats.gemini", 'output.take(said.get("image"))', "0"),
        ("asks_for_pictures",),
    ),
    Mutant(
        "fields that nobody knows pass",
        "3",
        _in(_BOUND, "    ways = unlisted(body, fields_of(format, body))\n", "    ways: list[str] = []\n"),
        ("asks_for_turbo",),
    ),
    Mutant(
        "fields that are allowed cost nothing",
        "3",
        _in("metering.opening", "    if demands.factor == PER_MILLE:\n", "    if demands.factor:\n"),
        ("asks_for_allowed_turbo",),
    ),
    Mutant(
        "models that search pass",
        "3, F3",
        _in(_BOUND, "    return _COMPOUND.search(model) is not None", "    return False"),
        ("asks_a_searching_model", "asks_a_compound"),
    ),
    Mutant(
        "reasoning in mode pro passes",
        "F3",
        _in(_BOUND, 'if mode not in (None, "standard", "default"):', "if mode == body:"),
        ("asks_a_compound",),
    ),
    Mutant(
        "tools of the provider pass",
        "R1, F2, R5",
        _in(_TEXT, "if kind is None or kind in plain:", "if kind is kind:"),
        ("asks_for_searches", "asks_for_drawing", "asks_for_a_container"),
    ),
    Mutant(
        "the input of a bound has the plain rate",
        "4",
        _in(
            "metering.estimated",
            "dearest = max(rates.input, rates.cached_input or 0, rates.cache_write or 0)",
            "dearest = rates.input",
            "HOUR_BY_INPUT * rates.input if own is None and name == HOUR else own or 0",
            "0",
        ),
        ("writes_to_the_cache", "writes_for_an_hour"),
    ),
    Mutant(
        "an hour in the cache costs what minutes do",
        "3",
        _in(
            "metering.formats.anthropic",
            '{"cache_write_1h": for_an_hour} if for_an_hour else _NO_MORE',
            "_NO_MORE",
            "written - for_an_hour",
            "written",
        ),
        ("writes_for_an_hour",),
    ),
    Mutant(
        "a text as a file has a constant",
        "5",
        _in(_TEXT, '_encoded_text(part) if kind == "file" else ("", 0)', '("", 0)'),
        ("sends_text_as_a_file",),
    ),
    Mutant(
        "context in extra_body is not seen",
        "6",
        _in(_BOUND, 'for name in ("cachedContent", "cached_content")', "for name in ()"),
        ("uses_extra_body",),
    ),
    Mutant(
        "context of responses is not seen",
        "6",
        _in("metering.formats.responses", "content.keeps_context = True\n    return asked", "pass\n    return asked"),
        ("uses_kept_context",),
    ),
    Mutant(
        "providers add no tokens",
        "F3",
        _in(_TEXT, "PROMPT_TOKENS: Final = 1_024", "PROMPT_TOKENS: Final = 0"),
        ("gives_tools",),
    ),
    Mutant(
        "added tokens of the price are not read",
        "F3",
        _in("metering.opening", "max(asked.added_tokens, added)", "asked.added_tokens"),
        ("asks_a_verbose_model",),
    ),
    Mutant(
        "a bound has four bytes a token",
        "F5",
        _in("metering.estimate", "max(text_bytes, all_bytes) + messages", "text_tokens(text_bytes) + messages"),
        ("sends_dense_text",),
    ),
    Mutant(
        "messages have no frame",
        "design",
        _in(
            "metering.estimate",
            "MESSAGE_TOKENS: Final = 16",
            "MESSAGE_TOKENS: Final = 0",
            "max(text_bytes, all_bytes)",
            "text_bytes",
        ),
        ("sends_empty_messages",),
    ),
    Mutant(
        "a picture has 85 tokens",
        "3",
        _in("metering.pictures", "    name = model.lower()\n", "    return 85\n    name = model.lower()\n"),
        ("sends_pictures",),
    ),
    Mutant(
        "one answer is charged of many",
        "design",
        _in("metering.formats.reading", "self.n = max(self.n, _whole", "self.n = min(1, _whole"),
        ("asks_for_many_answers",),
    ),
    Mutant(
        "the lower cap counts",
        "design",
        _in("metering.formats.reading", "else max(self.cap, cap)", "else min(self.cap, cap)"),
        ("names_two_caps",),
    ),
    Mutant(
        "a key may stand twice",
        "design",
        _in(
            "metering.body",
            "found = dict(pairs)\n        if len(found) < len(pairs):\n            raise DuplicateKey\n        self",
            "found = dict(reversed(pairs))\n        self",
        ),
        ("says_a_key_twice",),
    ),
    Mutant(
        "what is predicted costs nothing",
        "3",
        _in(
            "metering.formats.openai",
            '    if body.get("prediction") is not None:\n',
            '    if body.get("prediction") is body:\n',
        ),
        ("predicts",),
    ),
    Mutant(
        "the tier of long requests is not charged",
        "F5",
        _in("metering.prices", "                if whole <= above:\n", "                if above:\n"),
        ("asks_at_length",),
    ),
    Mutant(
        "the default cap is not written",
        "F6",
        _in(
            "metering.request",
            "body = json_body.write_values(self.body, value, changes)\n        fields",
            "body = self.body\n        fields",
        ),
        ("names_no_cap",),
    ),
    Mutant(
        "answers that cannot be read cost nothing",
        "design",
        _in(
            _SETTLEMENT, "self._settle(ESTIMATED, estimate)\n        if (", "self._settle(NOTHING, None)\n        if ("
        ),
        ("answers_in_riddles",),
    ),
    Mutant(
        "data of another type pass",
        "5",
        _in(_BOUND, "if kind in _OF_TYPE and", "if kind in () and"),
        ("sends_other_data",),
    ),
    Mutant(
        "a cap of 0 is a bound",
        "design",
        _in("metering.formats.reading", "some servers take a cap of 0 tokens for none", ""),
        ("names_a_cap_of_zero",),
    ),
    Mutant(
        "one of two models is charged",
        "12",
        _in("metering.request", 'raise UnreadableRequest("batch")', "return"),
        ("names_two_models",),
    ),
    Mutant(
        "the end of a text is the last word",
        "R8",
        _in(_SETTLEMENT, "        if self._last_word:\n", "        if self._last_word or self._is_whole:\n"),
        ("hears_no_usage", "wants_no_usage"),
    ),
)


def change(module: str, source: str, changes: Sequence[tuple[str, str, str]]) -> str:
    """Return the source of a module with the changes that it has."""
    for name, old, new in changes:
        if name == module:
            assert source.count(old) == 1, f"{module} has {old!r} {source.count(old)} times"
            source = source.replace(old, new)
    return source


def source_of(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, changes: Sequence[tuple[str, str, str]]) -> None:
        super().__init__(name, path)
        self._changes = changes

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(change(fullname, source_of(fullname), self._changes).encode(), self.path)


class _Finder(MetaPathFinder):
    """Loads modules with the changes of a mutant."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if not any(name == fullname for name, _, _ in self._mutant.changes):
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=_Loader(fullname, spec.origin, self._mutant.changes)
        )


def main(arguments: Sequence[str]) -> int:
    """Run the proxy with a mutant until it is stopped."""
    name, *options = arguments
    sys.meta_path.insert(0, _Finder(next(mutant for mutant in MUTANTS if mutant.name == name)))
    from enforcement.cli import proxy

    return proxy.main(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
