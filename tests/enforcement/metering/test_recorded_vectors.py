"""What recorded traffic of real providers used and cost, by the vectors of tests/vectors/recorded/."""

import math
from functools import cache
from typing import Any, NamedTuple

import pytest

from enforcement.metering.amounts import CLASSES, Usage, count_of
from enforcement.metering.answer import AnswerMeter
from enforcement.metering.opening import Opening, open_request
from enforcement.metering.prices import Prices
from enforcement.metering.request import MeteredRequest, Unmetered, read_request
from enforcement.model.limits import Limit
from enforcement.model.metered import Metering
from tests.enforcement.metering.recorded_vectors import (
    FAMILIES,
    FOLDER,
    body_of,
    chunks_of,
    price_of,
    prices,
    vectors_of,
)
from tests.enforcement.metering.wire_vectors import header_of

AT_US = 1_796_083_200_000_000  # 2026-12-01, of which the prices are
BUDGET = Limit(name="budget", quota=10**12, calendar="month", unit="micros")
ESTIMATES = {estimate: Metering(estimate=estimate) for estimate in ("typical", "bound")}
TOKENS = CLASSES[:-1]

UNREAD = {
    "anthropic-complete",
    "batch-create",
    "batch-results",
    "cohere-rerank",
    "ollama",
    "openai-realtime-call",
    "openai-realtime-secret",
    "openai-runs",
    "realtime-google",
    "realtime-openai",
    "voyage-rerank",
    "watsonx",
    "writer-chat",
}
"""Families that no meter reads, so that a limit on money refuses all of their requests."""

# Vectors that differ, by the reason. One that no longer differs fails, so that the list only gets shorter.
KNOWN: dict[str, dict[str, set[str]]] = {
    "A guardrail replaced the output. The body no longer counts it, and the header fields still do.": {
        "bedrock-invoke": {"aws/008 usage", "aws/008 micros"},
    },
    "The body counts in floats, which the vector reads as no counts. The header or the last frame has integers.": {
        "bedrock-invoke": {"aws/014 usage", "aws/014 micros"},
        "bedrock-invoke-stream": {"aws/002 usage", "aws/002 micros"},
    },
    "Latency has a rate of its own, which the price does not have.": {
        "bedrock-converse": {"aws/064 bound refuses"},
    },
    "A request cannot cap what a compaction writes.": {
        "openai-compact": {f"openai/{number} bound refuses" for number in ("002", "003", "005")},
    },
}


class Played(NamedTuple):
    """What the product made of a vector. A meter or an opening that it does not have is None."""

    asked: MeteredRequest | Unmetered
    openings: dict[str, Opening | None]
    refusals: dict[str, str]
    meter: AnswerMeter | None

    @property
    def usage(self) -> Usage | None:
        return None if self.meter is None else self.meter.usage


def play(vector: dict[str, Any]) -> Played:
    """Read the request of a vector, open it by both estimates, and read its answer."""
    request, answer = vector["request"], vector["answer"]
    header = header_of({"content-type": "application/json", **request.get("headers", {})})
    asked = read_request(request.get("method", "POST"), request["path"], header, body_of(request))
    is_read = isinstance(asked, MeteredRequest) and asked.has_tokens
    provider, _, _ = vector["name"].partition("/")
    names = {vector["model"], *([asked.attributes["model"]] if is_read else [])} - {""}
    book = _book(vector.get("price", f"{provider}/{vector['model']}"), frozenset(names))
    opened = {name: open_request(asked, [BUDGET], rules, book, AT_US) for name, rules in ESTIMATES.items()}
    meter = None
    if is_read and not asked.is_counting and (chunks := chunks_of(answer)):
        meter = AnswerMeter(asked.format, answer.get("status", 200), hide_usage=asked.hide_usage)
        meter.read_head(header_of(answer.get("headers")))
        for chunk in chunks:
            meter.feed(chunk)
        meter.finish()
    openings = {name: one if isinstance(one, Opening) else None for name, one in opened.items()}
    refusals = {name: one.detail for name, one in opened.items() if not isinstance(one, Opening)}
    return Played(asked, openings, refusals, meter)


@cache
def _book(listed: str, names: frozenset[str]) -> Prices:
    """Return the prices of a provider, with that of the models of a vector and one for all others."""
    entries = prices()
    own = entries.get(listed, entries["generic"])
    provider = listed.partition("/")[0] + "/"
    others = {name.removeprefix(provider): entry for name, entry in entries.items() if name.startswith(provider)}
    found = {**others, **dict.fromkeys(sorted(names), own), "*": entries["generic"]}
    return Prices(1, prices=tuple(price_of(name, entry) for name, entry in found.items()))


def differences(vector: dict[str, Any]) -> dict[str, str]:
    """Return in what the product differs from a vector, with how."""
    played, expected = play(vector), vector["expected"]
    if isinstance(played.asked, Unmetered) and expected.get("typical") == "no":
        return {}  # refused, as is due, so that there is nothing to compare
    checks = _admitted, _usage, _money, _settled, _bound
    return {name: how for check in checks for name, how in check(played, expected)}


def _admitted(played, expected):
    for name, opening in played.openings.items():
        due = expected.get(name, "yes")
        if due == "yes" and opening is None:
            yield f"{name} refuses", played.refusals[name]
        if due == "no" and name == "typical" and opening is not None:
            yield f"{name} admits", "nothing bounds what it costs"


def _usage(played, expected):
    if "usage" not in expected:
        return
    due = {name: expected["usage"].get(name, 0) for name in CLASSES}
    seen = played.usage
    if seen is None:
        if any(due.values()) or played.openings["typical"] is None:
            yield "usage", f"none, not {due}"
        return
    tokens = [count_of(seen, name) for name in TOKENS]
    # What the model of a tool for images has used may be counted or not.
    drawn = {"input": expected.get("image_gen_input", 0), "output": expected.get("image_gen_output", 0)}
    ways = [[due[name] for name in TOKENS], [due[name] + drawn.get(name, 0) for name in TOKENS]]
    if tokens not in ways:
        yield "usage", f"{tokens}, not {ways[0]}"
    if seen.calls != due["calls"] and not expected.get("calls_unsure"):
        yield "calls", f"{seen.calls}, not {due['calls']}"


def _money(played, expected):
    opening = played.openings["typical"]
    usage = played.usage
    if "usage" not in expected or opening is None:
        return
    if usage is None or opening.price is None:
        micros = opening.estimated_costs[0] if usage is None else None
        if micros != expected.get("micros", 0):
            yield "micros", f"{micros}, not {expected.get('micros')}"
        return
    micros = opening.price.micros(usage)
    if expected.get("approximate"):
        cost = expected.get("cost")
        if not opening.price.approximates(usage) and (cost is None or abs(micros - cost * 1_000_000) > 1):
            yield "mark", "the price is not said to be approximate"
    elif "micros" in expected and micros != expected["micros"]:
        yield "micros", f"{micros}, not {expected['micros']}"


def _settled(played, expected):
    if played.meter is not None and played.meter.settled_as != (due := expected.get("settled_as", "exact")):
        yield "settled", f"as {played.meter.settled_as}, not {due}"


def _bound(played, expected):
    opening = played.openings["bound"]
    if opening is None or opening.estimate is None or "usage" not in expected:
        return
    used, estimate = expected["usage"], opening.estimate
    due_input = sum(used.get(name, 0) for name in TOKENS if name != "output")
    due_output = used.get("output", 0)
    if "cap" not in expected:
        # The cap that the product writes into the request cuts the answer.
        due_output = min(due_output, estimate.output)
    is_cut = due_output < used.get("output", 0)
    due_micros = 0 if is_cut else max(expected.get("micros", 0), math.floor(expected.get("cost", 0) * 1_000_000))
    reserved = {"input": estimate.input, "output": estimate.output, "micros": opening.estimated_costs[0]}
    due = {"input": due_input, "output": due_output, "micros": due_micros}
    if any(reserved[name] < due[name] for name in due):
        yield "bound", f"reserved {reserved}, used {due}"


def test_every_vector_is_here():
    """None is lost, which nothing else would notice."""
    documents = [(FOLDER / f"{family}.json").read_text(encoding="utf-8") for family in FAMILIES]

    vectors = sum(len(document.splitlines()) - len(("first line", "last line")) for document in documents)
    assert (len(documents), vectors) == (32, 919)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in UNREAD])
def test_traffic_is_metered_as_it_was_recorded(family):
    """Tokens, calls, money, settlement, bound and admission are those of each vector of a family, but known ones."""
    vectors = vectors_of(family)

    found = {f"{one['name']} {what}": how for one in vectors for what, how in differences(one).items()}

    known = {name for families in KNOWN.values() for name in families.get(family, ())}
    assert {name: how for name, how in found.items() if name not in known} == {}
    assert known - found.keys() == set(), "no longer differ; take them off KNOWN"


@pytest.mark.parametrize("family", sorted(UNREAD))
def test_traffic_that_no_meter_reads_is_refused(family):
    """A limit on money refuses what it cannot count, by both estimates."""
    admitted = [one["name"] for one in vectors_of(family) if set(play(one).refusals) != set(ESTIMATES)]

    assert admitted == []
