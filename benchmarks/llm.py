"""``make bench-llm``, or ``python -m benchmarks llm [--quick] [--output FILE]``: our proxy beside LiteLLM's."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import figures, report
from benchmarks.doors import generator
from benchmarks.doors.litellm import KEY, litellm, version_of
from benchmarks.doors.metering import provider
from benchmarks.doors.provider import PATH, THINKING_CAP, chat
from benchmarks.doors.proxies import LITELLM, found
from benchmarks.doors.servers import Server, observed, other_core, ours, sample_of, told
from benchmarks.figures import MISSED, Row, rate
from benchmarks.measure import Effort, Round, Sample, Series, interleave, pin
from benchmarks.threads import PATIENCE
from benchmarks.web import authorization
from benchmarks.world import FAR_COST, PLAIN, World, world
from enforcement.aio import Limiter
from enforcement.plan.records import RecordKeys

HERE = Path(__file__).resolve().parent
BARE, OURS = "the provider", "Sluicegate"
FEW, MANY = 1, 16
"""Connections."""
SETTLE_SECONDS = 10.0
LEFT = "Sluicegate, clients leave a model that thinks"
_LEFT = "requests/s of a core (CPU a request), clients leave a model that thinks / clients stay"
_KEPT = "tokens that stay charged for a client that left / the cap of its request"
_MEASURES = (
    "Each proxy has a core of its own while it is asked. The generator, the provider and the store share the other one."
)
_RATE = f"requests/s of a core (CPU a request), {MANY} connections / LiteLLM"
_ADDED = {
    ("p50", FEW): f"added p50, {FEW} connection / LiteLLM",
    ("p99", MANY): f"added p99, {MANY} connections / LiteLLM",
}


def main(arguments: Sequence[str]) -> int:
    """Measure both proxies, print it, keep it. Return 1 if a promise was not kept."""
    options = _options(arguments)
    effort = Effort.quick() if options.quick else Effort()
    pinned, start = pin(), time.monotonic()
    with world() as store:
        rows, series, versions = compare(store, effort)
        noise = series.spread(_candidate(BARE, FEW)) if series is not None else None
        group = figures.Group.of("llm", _MEASURES, rows, series, noise)
        made = report.Report(effort, pinned, store.name, [group], time.monotonic() - start, versions)
    print(report.plain(rows))
    print(f"\n{pinned} Noise: {made.noise_told}. {made.seconds:.0f} s.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(made.to_json(), indent=1) + "\n")
    if not options.quick and series is not None:
        (HERE / "RESULTS-LLM.md").write_text(made.markdown("make bench-llm"))
    return 1 if any(row.mark == MISSED for row in rows) and not options.quick else 0


def compare(store: World, effort: Effort) -> tuple[list[Row], Series | None, dict[str, str]]:
    """
    Measure the provider alone, and behind each proxy. Return rows, series, and the version of LiteLLM.

    The core that is measured has nothing but the proxies. The generator, the provider and the store share the other
    one. Ours meters each request and charges it to a limit of tokens; LiteLLM checks its master key.
    """
    core, python = other_core(), found(LITELLM)
    if core is None or python is None:
        return [figures.absent(name, figures.LITELLM) for name in _ADDED.values()], None, {}
    fields = {BARE: "", OURS: authorization(store.tokens("tokens", 1)[0]), LITELLM: authorization(KEY)}
    rounds: dict[str, Round] = {}
    with ExitStack() as stack:
        behind = stack.enter_context(provider())
        variables = {"SLUICEGATE_UPSTREAM_URL": f"http://127.0.0.1:{behind.port}", "SLUICEGATE_METER": "auto"}
        servers = {
            BARE: behind,
            OURS: stack.enter_context(ours("proxy", store.url, core=core, **variables)),
            LITELLM: stack.enter_context(litellm(python, provider=behind.port, core=core)),
        }
        for connections in (FEW, MANY):
            for name, server in servers.items():
                ask = partial(_ask, server, fields[name], connections, effort)
                rounds[_candidate(name, connections)] = observed(ask, store, strict=name == OURS, cpu=server)
        token, left = store.tokens("kept", 1)[0], list[int]()
        leave = partial(_leave, servers[OURS], authorization(token), effort, left)
        rounds[LEFT] = observed(leave, store, strict=True, cpu=servers[OURS])
        series = interleave(rounds, effort.rounds)
        kept = asyncio.run(_kept(store, token)) / sum(left)
    rows = [*_rows(series), Row(_KEPT, f"{kept:.0f}", f"{THINKING_CAP}", kept / THINKING_CAP, figures.KEPT)]
    return rows, series, {LITELLM: version_of(python)}


def _leave(server: Server, fields: str, effort: Effort, left: list[int]) -> Sample:
    """Add how many clients have left to *left*, also those of a round that does not count."""
    body, seconds = chat(stream=True, thinks=True), effort.http_seconds
    spans, elapsed = generator.leave(server.port, fields, body, seconds=seconds, path=PATH)
    left.append(len(spans))
    return sample_of(spans, elapsed)


async def _kept(store: World, token: str) -> int:
    """Return the tokens that stay charged when all reservations of a token are settled."""
    index, end = RecordKeys.of(store.keys, PLAIN, "").index, time.monotonic() + SETTLE_SECONDS
    while store.client.zcard(index):
        if time.monotonic() > end:
            raise RuntimeError(f"A reservation was not settled within {SETTLE_SECONDS:.0f} s.")
        await asyncio.sleep(0.01)
    async with Limiter(store.url, timeout=PATIENCE) as limiter:
        seen = await limiter.decide(await limiter.find_plan(token, {}), {"tokens": 0}, charge=False)
        return FAR_COST - seen.limits[0].remaining


def _ask(server: Server, fields: str, connections: int, effort: Effort) -> Sample:
    seconds = effort.http_seconds
    return sample_of(*generator.post(server.port, fields, chat(), connections=connections, seconds=seconds, path=PATH))


def _candidate(name: str, connections: int) -> str:
    return f"{name}, {connections} connection{'s' * (connections > 1)}"


def _rows(series: Series) -> list[Row]:
    rows = []
    for (figure, connections), shown in _ADDED.items():
        mine, theirs, bare = (_candidate(name, connections) for name in (OURS, LITELLM, BARE))
        both = [f"{(series.median(it, figure) - series.median(bare, figure)) / 1e3:.2f} ms" for it in (mine, theirs)]
        rows.append(Row(shown, *both, series.added_ratio(mine, theirs, bare, figure), figures.LITELLM))
    compared = {_RATE: (_candidate(OURS, MANY), _candidate(LITELLM, MANY)), _LEFT: (LEFT, _candidate(OURS, FEW))}
    for shown, pair in compared.items():
        both = [f"{rate(series.median(it, 'per_second'))}, {told({'CPU': series.median(it, 'cpu')})}" for it in pair]
        bar = figures.LITELLM_RATE if shown == _RATE else None
        rows.append(Row(shown, *both, series.ratio(*pair, "per_second"), bar))
    return rows


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks llm", description="Measure our proxy beside that of LiteLLM."
    )
    parser.add_argument("--quick", action="store_true", help="see that everything runs; keeps no results")
    output = HERE.parent / "var" / "benchmarks-llm.json"
    parser.add_argument("--output", type=Path, default=output, help="where JSON goes")
    return parser.parse_args(arguments)
