"""
``python -m benchmarks admin``: PostgreSQL with many rows, each page of the admin for three people, and a table.

It starts a PostgreSQL and a store of its own. Nothing of it is left behind.
"""

import argparse
import os
import platform
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from enforcement.embedded import ValkeyServer
from tests.postgres import running

# A quarter of the memory of a small server for a database. The rest is as it is installed.
TUNED = {"shared_buffers": "2GB", "effective_cache_size": "6GB", "max_wal_size": "8GB", "autovacuum": "off"}
TIMES = 3
BOUND_MS = 300
# The review of a change replays a day of 10,000 callers, and has a bound of its own.
REVIEW, REVIEW_MS = "/enforce/", 3_000
PEOPLE = {"operator": "operator", "owner": "member-0", "viewer": "member-1"}
FULL, QUICK = (1_000_000, 5_000, 200), (20_000, 500, 40)
SHOWN = 600
ADDITIONS = 10_000_000


def main(arguments: Sequence[str]) -> int:
    """Measure all pages, print the table, and return 1 if one takes longer than it may."""
    options = _options(arguments)
    with ValkeyServer(persistent=False) as store, running(**TUNED) as url:
        os.environ |= {
            "DATABASE_URL": url,
            "SLUICEGATE_REDIS_URL": store.url,
            "SECRET_KEY": secrets.token_urlsafe(50),
            "ALLOWED_HOSTS": "testserver",
            "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        }
        import django

        django.setup()
        return _measured(options, _made(options))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks admin", description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="20,000 tokens and one visit: shows that it runs")
    parser.add_argument("--only", default="", help="measure only the pages whose address contains this")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    return parser.parse_args(arguments)


def _made(options: argparse.Namespace) -> str:
    """Make the rows, and return a sentence on them. Django is set up by now."""
    from django.core.management import call_command
    from django.db import connection
    from django.utils import timezone

    from tests.million import data, loading

    call_command("migrate", verbosity=0)
    size, began = data.Size(*(QUICK if options.quick else FULL)), time.monotonic()
    with loading.without_indexes(
        data.Token, data.AuditEntry, data.UsageRow, data.MeteredRow, data.DeniedRequest, data.MonthRow
    ):
        data.fill(size, timezone.now())
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("SELECT pg_size_pretty(pg_database_size(current_database()))")
        (on_disk,) = cursor.fetchone()
    made = f"{size.tokens:,} tokens, {size.policies:,} policies, {size.projects:,} projects: {on_disk}"
    return f"{made}, made in {time.monotonic() - began:.0f} s."


def _measured(options: argparse.Namespace, made: str) -> int:
    """Visit the pages, print the table, and return 1 if one takes longer than it may."""
    import logging

    from tests.million.pages import pages

    logging.disable(logging.CRITICAL)
    print(made, file=sys.stderr)
    found = _visits([url for url in pages() if options.only in url], 1 if options.quick else TIMES)
    text = report(made, found)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    slow = [url for url, by in found.items() if any(_is_slow(url, one.cost.seconds) for one in by.values())]
    return 1 if slow and not options.quick else 0


def _is_slow(url: str, seconds: float) -> bool:
    """Return whether a page takes longer than it may."""
    return seconds * 1000 > (REVIEW_MS if REVIEW in url else BOUND_MS)


def _visits(urls: list[str], times: int) -> dict[str, dict[str, object]]:
    """Return a visit of each page by each person who may see it."""
    from django.contrib.auth.models import User
    from django.test import Client

    from tests.million.measuring import measured

    found: dict[str, dict[str, object]] = {url: {} for url in urls}
    for person, name in PEOPLE.items():
        client = Client()
        client.force_login(User.objects.get(username=name))
        for url in urls:
            visited = measured(client, url, times)
            if visited.status == 200:
                found[url][person] = visited
            elif visited.status not in (302, 403, 404):  # such as an action on more rows than a job may have
                raise SystemExit(f"{url} answers {visited.status} to {person}.")
            if _is_slow(url, visited.cost.seconds):
                took = f"{visited.cost.seconds * 1000:.0f} ({visited.cost.processor * 1000:.0f}) ms {person} {url}"
                print(f"{took}\n    {visited.slowest[:SHOWN]}", file=sys.stderr)
    return {url: by for url, by in found.items() if by}


def report(made: str, found: dict[str, dict[str, object]]) -> str:
    """Return the figures as a page of Markdown."""
    costs = [one.cost for url, by in found.items() for one in by.values() if REVIEW not in url]
    all_of_them = sorted((cost.seconds * 1000 for cost in costs), reverse=True)
    busiest, busy = max(cost.processor for cost in costs), sum(cost.processor * 1000 > BOUND_MS for cost in costs)
    over = sum(ms > BOUND_MS for ms in all_of_them)
    lines = [
        f"{made} {_machine()}",
        "",
        f"{len(found)} pages, {len(all_of_them)} with each of the people who may see them. {over} take longer than "
        f"{BOUND_MS} ms. The slowest takes {all_of_them[0]:.0f} ms, half of them at most "
        f"{all_of_them[len(all_of_them) // 2]:.0f} ms. By processor time, {busy} take longer, and the slowest "
        f"{busiest * 1000:.0f} ms. Not among them is the review of a change, which replays a day of 10,000 callers and "
        f"may take {REVIEW_MS / 1000:.0f} s. The load of the machine was {os.getloadavg()[1]:.0f}.",
        "",
        "Each cell: server time (processor time of Python and PostgreSQL), number of queries, time in the database.",
        "",
        "| page | " + " | ".join(PEOPLE) + " |",
        "| --- |" + " --- |" * len(PEOPLE),
    ]
    for url, by in found.items():
        cells = [_cell(url, by[person]) if person in by else "" for person in PEOPLE]
        lines.append(f"| `{url.replace('|', '%7C')}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(url: str, visited: object) -> str:
    cost = visited.cost
    mark = "**" if _is_slow(url, cost.seconds) else ""
    times = f"{mark}{cost.seconds * 1000:.0f} ms{mark} ({cost.processor * 1000:.0f})"
    return f"{times}, {cost.queries}, {cost.in_database * 1000:.0f} ms"


def _machine() -> str:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        (version,) = cursor.fetchone()
    settings = ", ".join(f"{name} {value}" for name, value in TUNED.items())
    python = platform.python_version()
    return (
        f"PostgreSQL {version} ({settings}), Python {python}, {os.cpu_count()} cores, {platform.machine()}. {_speed()}"
    )


def _speed() -> str:
    """Return how long this machine takes for two simple tasks, so that the figures of two machines can be compared."""
    from django.db import connection

    began = time.perf_counter()
    sum(number for number in range(ADDITIONS))
    python = time.perf_counter() - began
    with connection.cursor() as cursor:
        cursor.execute("SET max_parallel_workers_per_gather = 0")
        began = time.perf_counter()
        cursor.execute("SELECT SUM(LENGTH(name)) FROM projects_token")
        read = time.perf_counter() - began
        cursor.execute("RESET max_parallel_workers_per_gather")
    adding = f"Python adds {ADDITIONS:,} numbers in {python:.2f} s"
    return f"{adding}, and the database reads all names of tokens in {read * 1000:.0f} ms."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
