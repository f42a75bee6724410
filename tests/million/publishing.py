"""
``python -m benchmarks publish``: what publishing costs with many tokens, and what an enforcer holds of them.

It starts a PostgreSQL and two stores of its own. Nothing of it is left behind.
"""

import argparse
import logging
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enforcement.embedded import ValkeyServer
from tests.million.__main__ import TUNED
from tests.postgres import running

FULL, QUICK = (1_000_000, 5_000, 200), (20_000, 100, 40)
USED = 10_000
CHANGES = 100
MARKDOWN = ("| figure | wall | processor time: Python | PostgreSQL | store |", "| --- | --- | --- | --- | --- |")


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of a clock on the wall, and of processor time of this process, its connection, and the store."""

    wall: float
    python: float
    database: float
    store: float

    @classmethod
    def until_now(cls) -> "Spent":
        from django.db import connection

        from controlplane.core import store

        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        used = store.connection().info("cpu")
        in_store = float(used["used_cpu_user"]) + float(used["used_cpu_sys"])
        return cls(time.monotonic(), time.process_time(), sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), in_store)

    def since(self, before: "Spent") -> "Spent":
        return Spent(
            self.wall - before.wall,
            self.python - before.python,
            self.database - before.database,
            self.store - before.store,
        )

    def row(self, name: str, unit: str, each: float) -> str:
        """Return a row of the table, in a unit of which a second has *each*."""
        spent = (self.wall, self.python, self.database, self.store)
        return f"| {name} | " + " | ".join(f"{seconds * each:,.1f} {unit}" for seconds in spent) + " |"


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, and return 1 if something takes longer than it may."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks publish", description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="20,000 tokens: shows that it runs")
    quick = parser.parse_args(arguments).quick
    with ValkeyServer(persistent=False) as store, ValkeyServer(persistent=False) as other, running(**TUNED) as url:
        os.environ |= {
            "DATABASE_URL": url,
            "SLUICEGATE_REDIS_URL": store.url,
            "SECRET_KEY": secrets.token_urlsafe(50),
            "ALLOWED_HOSTS": "testserver",
            "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        }
        import django

        django.setup()
        logging.disable(logging.CRITICAL)
        used = _made(QUICK if quick else FULL)
        print("\n".join(MARKDOWN))
        rebuilt = _rebuild()
        changed = _changes()
        for line in _memory(store.url, other.url, used):
            print(line)
    return 0 if quick or (rebuilt.wall <= 60 and changed <= 0.020) else 1


def _made(numbers: tuple[int, int, int]) -> list[str]:
    """Make the rows, and return the secrets of USED more tokens."""
    from django.core.management import call_command
    from django.db import connection, transaction
    from django.utils import timezone

    from enforcement.model.tokens import digest, mint
    from tests.million import data, loading

    call_command("migrate", verbosity=0)
    size = data.Size(*numbers)
    rows = data.Rows(size, timezone.now())
    made = [mint("live") for _ in range(USED)]
    with transaction.atomic():
        loading.trust_keys()
        loading.load(data.Project, rows.projects())
        loading.load(data.Policy, rows.policies())
        loading.load(data.Limit, rows.limits())
        loading.load(data.Token, rows.tokens())
        loading.load(data.Override, rows.overrides())
        more = {"project_id": data.project(1), "policy_id": data.policy(1), "prefix": "sg_live_test"}
        for number, secret in enumerate(made):
            data.Token.objects.create(name=f"used-{number}", digest=digest(secret), **more)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    return made


def _rebuild() -> Spent:
    from controlplane.releases.publishing import publisher
    from controlplane.releases.publishing.reconcile import queue_unknown_tokens

    def rebuild() -> None:
        queue_unknown_tokens()
        publisher.publish_all()

    _timed("rebuild of an empty store", rebuild)
    return _timed("rebuild of a full store, as `publish --all` does", rebuild)


def _timed(name: str, act: Callable[[], Any]) -> Spent:
    before = Spent.until_now()
    act()
    spent = Spent.until_now().since(before)
    print(spent.row(name, "s", 1), flush=True)
    return spent


def _changes() -> float:
    """Rename some tokens one after the other, print the medians, and return that of the publications, in seconds."""
    from controlplane.changes.change.transaction import Actor, change
    from controlplane.objects.projects.models import Token
    from controlplane.releases.publishing import publisher

    took: list[tuple[float, float]] = []
    promptly = publisher.publish_promptly

    def timed() -> None:
        wall, python = time.perf_counter(), time.process_time()
        promptly()
        took.append((time.perf_counter() - wall, time.process_time() - python))

    publisher.publish_promptly = timed
    before = Spent.until_now()
    for token in Token.objects.order_by("digest")[:CHANGES]:
        record = token.as_record()
        with change(actor=Actor("ann", "api")) as tx:
            token.name += "-renamed"
            token.save()
            tx.updated(token, record)
        assert tx.revision
    whole = Spent.until_now().since(before)
    publisher.publish_promptly = promptly
    # What PostgreSQL and the store spend is only known of all changes, with the writing of the rows.
    wall, python = (statistics.median(times) for times in zip(*took, strict=True))
    spent = Spent(wall, python, whole.database / CHANGES, whole.store / CHANGES)
    print(spent.row("publication of one change", "ms", 1000), flush=True)
    return wall


def _memory(everything: str, alone: str, used: list[str]) -> Iterator[str]:
    """Yield what an enforcer takes that uses these tokens, where others are published too, and where none are."""
    from django.utils import timezone

    from controlplane.core import store
    from controlplane.releases.publishing import compile
    from enforcement.model.keys import WHOLE
    from enforcement.model.tokens import digest
    from enforcement.store.client import call_function, connect
    from enforcement.store_calls.publication import Publication, publish_call, tags_of

    documents, rows = compile.all_documents(), compile.tokens(map(digest, used), timezone.now())
    publication = Publication(1, 1, "alone", documents, rows, full=True, replace_all=True)
    with connect(alone, timeout=30) as client:
        for tag in tags_of(documents):  # without its counters, the other one would be decided by the fallback
            client.sadd(store.keys().dirty(tag), WHOLE)
        call_function(client, *publish_call(publication, store.keys()))
    yield "\n| enforcer | before | after |\n| --- | --- | --- |"
    for name, url in (("no others are published", alone), ("all are published", everything)):
        for count in (0, len(used)):
            command = [sys.executable, "-m", "tests.million.enforcer", url]
            text = "\n".join(used[:count])
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
            before, after = (int(number) / 1024 for number in done.stdout.split())
            yield f"| {count:,} tokens used, {name} | {before:.1f} MiB | {after:.1f} MiB |"
    of_all = store.connection()
    each = of_all.info("memory")["used_memory"] / of_all.dbsize()
    yield f"\n| store | memory |\n| --- | --- |\n| a token of {of_all.dbsize():,} keys | {each:.0f} B |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
