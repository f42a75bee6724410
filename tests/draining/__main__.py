"""
``python -m benchmarks drain``: how many rows of usage workers bring from the store into PostgreSQL.

It starts a PostgreSQL and a store of its own. Each worker is a process that drains as Celery's task does, until the
streams are empty. Processor time is that of the workers and of all processes of the database.

Batches are those of enforcers that have seen many tokens, so each has rows of one shard. With ``--one-stream`` they are
those of earlier enforcers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from enforcement.embedded import ValkeyServer
from enforcement.usage.shards import by_shard
from tests.postgres import SETTINGS, running

ROOT = Path(__file__).resolve().parents[2]
USAGE, SHARD = "sg:{usage}:stream", "sg:{usage}:shard:"
TUNED = {"shared_buffers": "2GB", "max_wal_size": "8GB"}
# A thousand rows are the most that an enforcer puts into a batch. A token has a row of its own and one of each limit.
BATCH_ROWS, LIMITS, MINUTES = 999, 2, 5
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Size:
    """How many batches are drained, of how many tokens, projects and instances."""

    batches: int
    tokens: int
    projects: int = 50
    instances: int = 20
    is_sharded: bool = True

    @property
    def rows(self) -> int:
        return self.batches * BATCH_ROWS


# A multiple of what two workers read at once. Otherwise one of them works alone at the end.
FULL, QUICK = Size(batches=400, tokens=20_000), Size(batches=20, tokens=2_000)
# Loads the code of the database and of the workers, and is not counted.
WARM = Size(batches=40, tokens=20_000)
RESULTS = ROOT / "benchmarks" / "RESULTS-DRAIN.md"
# What follows it in the file is from earlier runs, and stays.
EARLIER = "## Earlier"


@dataclass(frozen=True)
class Run:
    """What one run took: seconds of wall, and of processor time of all workers and of the database."""

    workers: int
    rows: int
    wall: float
    worker_cpu: float
    database_cpu: float

    @property
    def database_share(self) -> float:
        return self.database_cpu / (self.database_cpu + self.worker_cpu)


def main(arguments: Sequence[str]) -> int:
    """Run the measurement and print its table. Return 0."""
    options = _options(arguments)
    size = replace(QUICK if options.quick else FULL, is_sharded=not options.one_stream)
    with ValkeyServer(persistent=False) as store, running(**TUNED) as url:
        environment = {
            "DATABASE_URL": url,
            "SLUICEGATE_REDIS_URL": store.url,
            "SECRET_KEY": secrets.token_urlsafe(50),
            "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        }
        os.environ |= environment
        import django

        django.setup()
        _prepare(size)
        _run(replace(QUICK if options.quick else WARM, is_sharded=size.is_sharded), 1)
        # Alternated, so that a noisy minute of the machine does not fall on one of them only.
        runs = [_run(size, workers) for _ in range(options.times) for workers in options.workers]
        text = report(runs, size, _server())
    print(text)
    if options.write:
        RESULTS.write_text(f"{text}\n{_earlier(RESULTS.read_text())}")
    return 0


def _server() -> str:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        return f"PostgreSQL {cursor.fetchone()[0].split()[0]}"


def _earlier(before: str) -> str:
    """Return the part of the file that a new run keeps, or an empty string if there is none."""
    _, found, rest = before.partition(EARLIER)
    return f"\n{found}{rest}" if found else ""


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks drain", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows: shows that it runs")
    parser.add_argument("--one-stream", action="store_true", help="batches of earlier enforcers, which know no shards")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers (default: 1 2)")
    parser.add_argument("--times", type=int, default=3, help="runs of each; the median is shown (default: 3)")
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS.name}")
    return parser.parse_args(arguments)


def _prepare(size: Size) -> None:
    """Create the tables and the tokens, of which the drain notes when they were last used."""
    from django.core.management import call_command

    from controlplane.objects.projects.models import Project, Token

    call_command("migrate", verbosity=0)
    Project.objects.bulk_create(Project(pk=_project(n), slug=f"project-{n}", name=f"{n}") for n in range(size.projects))
    Token.objects.bulk_create(
        (
            Token(
                pk=_token(n),
                project_id=_project(n % size.projects),
                name=f"{n}",
                digest=f"{n:064d}",
                prefix="sg_live_1",
            )
            for n in range(size.tokens)
        ),
        batch_size=5_000,
    )


def _project(number: int) -> str:
    return f"proj_{number:026d}"


def _token(number: int) -> str:
    return f"tok_{number:026d}"


def _fill(size: Size, seed: int) -> int:
    """Write the batches of a fleet to the streams as enforcers do, and return the requests that they count."""
    import redis
    from django.conf import settings

    from controlplane.traffic.stream.streams import SHARDS_A_DRAIN

    drawn, requests = random.Random(seed), 0
    minute = int(time.time() // 60)
    named = [(0, _project(token % size.projects), _token(token)) for token in range(size.tokens)]
    shards = SHARDS_A_DRAIN * settings.DRAINS if size.is_sharded else 1
    tokens = {shard: [int(token[4:]) for *_, token in rows] for shard, rows in by_shard(named, shards).items()}
    with redis.Redis.from_url(os.environ["SLUICEGATE_REDIS_URL"]) as client:
        for number in range(size.batches):
            instance = f"host-{number % size.instances}-1234"
            rows, spread = [], []
            shard = number % shards
            for token in drawn.sample(tokens[shard], BATCH_ROWS // (1 + LIMITS)):
                names = (minute - drawn.randrange(MINUTES), _project(token % size.projects), _token(token))
                allowed = drawn.randrange(1, 50)
                requests += allowed
                counts, policy = (allowed, 1, 0, allowed), f"pol_{token % 40:026d}"
                rows += [[*names, policy, f"limit-{limit}", "requests", *counts] for limit in range(LIMITS)]
                spread.append([len(rows), 7 << drawn.randrange(50), allowed, 1, 0, 0, 0, 0])
                rows.append([*names, "", "", "requests", *counts])
            text, more = (json.dumps(values, separators=(",", ":")) for values in (rows, spread))
            fields = {"id": f"{instance}-{seed:08x}-{number}", "instance": instance, "rows": text, "spread": more}
            client.xadd(f"{SHARD}{shard}" if size.is_sharded else USAGE, fields)  # type: ignore[arg-type]
    return requests


def _empty() -> None:
    from django.db import connection

    tables = "usage_usagerow, usage_meteredrow, usage_decisioncount, usage_usagebatch, statements_monthrow"
    tables += ", preview_recordedminute"
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {tables}")
        cursor.execute("UPDATE projects_token SET last_used_at = NULL")
        cursor.execute("VACUUM ANALYZE projects_token")
        cursor.execute("CHECKPOINT")


def _run(size: Size, workers: int) -> Run:
    """Drain one full stream by some workers, and return what it took."""
    from django.db.models import Sum

    from controlplane.traffic.usage.models import UsageRow

    _empty()
    requests = _fill(size, seed=secrets.randbits(30))
    with ExitStack() as stack:
        command = [sys.executable, "-c", "from tests.draining.__main__ import work; work()"]
        processes = [
            stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(workers)
        ]
        for process in processes:
            assert _line(process.stdout) == "ready"
        database, began = _database_cpu(), time.monotonic()
        for process in processes:
            _write(process.stdin)
        done = [json.loads(_line(process.stdout)) for process in processes]
        wall, database = time.monotonic() - began, _database_cpu() - database
        for process in processes:
            _write(process.stdin)
    for period in ("minute", "hour", "day"):
        found = UsageRow.objects.filter(period=period, limit_name="").aggregate(n=Sum("allowed"))["n"]
        if found != requests:
            raise RuntimeError(f"{period}: {found} requests in SQL, {requests} in the stream.")
    return Run(workers, size.rows, wall, sum(one["cpu"] for one in done), database)


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


def _write(stream: IO[str] | None) -> None:
    assert stream is not None
    stream.write("\n")
    stream.flush()


def work() -> None:
    """Drain until the stream is empty, and print the processor time of it. It is one worker of the measurement."""
    import django

    django.setup()
    from django.db import connection
    from django.utils import timezone

    from controlplane.core import store
    from controlplane.traffic.stream import streams
    from controlplane.traffic.usage.drain import drain

    client = store.connection()
    client.ping()
    connection.ensure_connection()
    print("ready", flush=True)
    sys.stdin.readline()
    before = _own_cpu()
    while any(streams.lengths(client).values()):
        if not drain(timezone.now()):
            time.sleep(0.05)
    print(json.dumps({"cpu": _own_cpu() - before}), flush=True)
    # Its connection stays open meanwhile: the time of a process of the database that has ended could not be read.
    sys.stdin.readline()


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _database_cpu() -> float:
    """Return the seconds of processor time that all processes of the database have used."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backend = cursor.fetchone()[0]
    server = int(_stat(backend)[1])
    return sum(_cpu(pid) for pid in [server, *_children(server)])


def _children(parent: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (found := _stat(int(entry.name))) and int(found[1]) == parent:
            yield int(entry.name)


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on, or an empty list if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu(pid: int) -> float:
    found = _stat(pid)
    return (int(found[11]) + int(found[12])) / TICKS if found else 0.0


def report(runs: Sequence[Run], size: Size, server: str) -> str:
    """Return the page with the medians, and with each run in the order in which they were made."""
    fsync = "without fsync" if SETTINGS["fsync"] == "off" else "with fsync"
    how = f"{server} ({', '.join(f'{key} {value}' for key, value in TUNED.items())}, {fsync}), Python"
    each = [
        f"| {run.workers} | {run.rows / run.wall:,.0f} | {1e6 * run.worker_cpu / run.rows:.1f} "
        f"| {1e6 * run.database_cpu / run.rows:.1f} |"
        for run in runs
    ]
    return "\n".join(
        [
            "# Usage from the store into PostgreSQL",
            "",
            f"Made by `python -m benchmarks drain --write` on {time.strftime('%-d %B %Y')}: {size.rows:,} rows a run,",
            f"{size.tokens:,} tokens in {size.projects} projects, {1 + LIMITS} rows a token, {MINUTES} minutes,",
            f"{'by shards' if size.is_sharded else 'in one stream'}.",
            f"{how} {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end.",
            "",
            "The medians:",
            "",
            table(runs),
            "",
            "Each run, in the order in which they were made, with microseconds of processor time for a row:",
            "",
            "| workers | rows/s, wall | workers, µs | database, µs |",
            "| --- | --- | --- | --- |",
            *each,
        ]
    )


def table(runs: Sequence[Run]) -> str:
    """Return a table of the medians for each number of workers."""
    lines = [
        "| workers | rows/s, wall | by one | rows per CPU second: workers | with the database | its share |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    by_workers = {n: [run for run in runs if run.workers == n] for n in sorted({run.workers for run in runs})}
    one = 0.0
    for workers, some in by_workers.items():
        wall = statistics.median(run.rows / run.wall for run in some)
        one = one or wall
        own = statistics.median(run.rows / run.worker_cpu for run in some)
        every = statistics.median(run.rows / (run.worker_cpu + run.database_cpu) for run in some)
        share = statistics.median(run.database_share for run in some)
        name = f"{workers} worker{'s' if workers > 1 else ''}"
        lines.append(f"| {name} | {wall:,.0f} | {wall / one:.2f} | {own:,.0f} | {every:,.0f} | {share:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
