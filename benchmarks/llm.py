"""``make bench-llm``, or ``python -m benchmarks llm [--quick] [--output FILE]``: our proxy beside LiteLLM's."""

from __future__ import annotations

import argparse
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
from benchmarks.doors.provider import PATH, chat
from benchmarks.doors.proxies import LITELLM, found
from benchmarks.doors.servers import Server, observed, other_core, ours, sample_of, told
from benchmarks.figures import MISSED, Row, rate
from benchmarks.measure import Effort, Round, Sample, Series, interleave, pin
from benchmarks.web import authorization
from benchmarks.world import World, world

HERE = Path(__file__).resolve().parent
BARE, OURS = "the provider", "Sluicegate"
FEW, MANY = 1, 16
"""Connections."""
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
        made = report.Report(
            effort, pinned, store.name, rows, series, _noise(series), time.monotonic() - start, versions
        )
    print(report.plain(rows))
    print(f"\n{pinned} Noise: {made.noise_told}. {made.seconds:.0f} s.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(made.to_json(), indent=1) + "\n")
    if not options.quick and series:
        (HERE / "RESULTS-LLM.md").write_text(made.markdown("make bench-llm"))
    return 1 if any(row.mark == MISSED for row in rows) and not options.quick else 0


def compare(store: World, effort: Effort) -> tuple[list[Row], dict[str, Series], dict[str, str]]:
    """
    Measure the provider alone, and behind each proxy. Return rows, series by name, and the version of LiteLLM.

    The core that is measured has nothing but the proxies. The generator, the provider and the store share the other
    one. Ours meters each request and charges it to a limit of tokens; LiteLLM checks its master key.
    """
    core, python = other_core(), found(LITELLM)
    if core is None or python is None:
        return [figures.absent(name, figures.LITELLM) for name in _ADDED.values()], {}, {}
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
        series = interleave(rounds, effort.rounds)
    return _rows(series), {"llm": series}, {LITELLM: version_of(python)}


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
    mine, theirs = (_candidate(name, MANY) for name in (OURS, LITELLM))
    both = [
        f"{rate(series.median(it, 'per_second'))}, {told({'CPU': series.median(it, 'cpu')})}" for it in (mine, theirs)
    ]
    return [*rows, Row(_RATE, *both, series.ratio(mine, theirs, "per_second"), figures.LITELLM_RATE)]


def _noise(series: dict[str, Series]) -> dict[str, float]:
    return {name: it.spread(_candidate(BARE, FEW)) for name, it in series.items()}


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks llm", description="Measure our proxy beside that of LiteLLM."
    )
    parser.add_argument("--quick", action="store_true", help="see that everything runs; keeps no results")
    output = HERE.parent / "var" / "benchmarks-llm.json"
    parser.add_argument("--output", type=Path, default=output, help="where JSON goes")
    return parser.parse_args(arguments)
