"""
The proxy of the proof: the real one, which also writes its admissions and settlements to a ledger.

It runs under the server of ``sluicegate proxy``: ``python -m enforcement.proof.metering.recorder``. Three lines of
the ledger belong to a request: it was admitted, it is being settled, and it is settled. A process that is killed
between the last two may have settled it in the store.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from enforcement.cli import servers
from enforcement.doors.asgi import LimitMiddleware
from enforcement.doors.metered.visit import MeteredVisit
from enforcement.doors.proxy import create_app
from enforcement.http.asgi import METERED, App, Receive, Scope, Send, header_of
from enforcement.metering.settlement import Settlement
from enforcement.plan.costs import Costs
from enforcement.proof.metering.provider import REQUEST_ID
from enforcement.reservations import book

LEDGER: Final = "SLUICEGATE_PROOF_LEDGER"
LIFE: Final = "SLUICEGATE_PROOF_LIFE"
"""Seconds after which the reservations of a killed process are lost."""


_APP: Final = "enforcement.proof.metering.recorder:create_recorded_app"


class Recorder:
    """
    Writes a line for each admission and settlement, in calls that a kill cannot tear apart.

    Args:
        app: The application that forwards admitted requests.
        path: The ledger.
    """

    def __init__(self, app: App, path: Path) -> None:
        self._app = app
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request, and write what becomes of it."""
        visit: MeteredVisit | None = scope.get(METERED)
        if visit is not None:
            self._follow(visit, header_of(scope, REQUEST_ID.encode()) or "")
        await self._app(scope, receive, send)

    def _follow(self, visit: MeteredVisit, ident: str) -> None:
        """Write that a request was admitted, and later how it is settled."""
        admission, report = visit.admission, visit.report
        decision = admission.decision
        counters = {bound.limit.name: bound.key for bound in decision.bounds}
        metered = visit.exchange.reservation
        row = {"id": ident, "token": decision.plan.subject[1], "reservation": admission.id, "counters": counters}
        said = {"estimate": metered.estimated_costs, "source": decision.source, "decided": decision.decided_at_us}
        self._write("admitted", {**row, **said})
        conclude, conclude_soon = admission.conclude, admission.conclude_soon

        def settling() -> None:
            self._write("settling", {"id": ident, "as": metered.settled_as, "costs": metered.costs})

        async def concluding(costs: Costs | None = None, *, is_last_word: bool = True) -> None:
            settling()
            await conclude(costs, is_last_word=is_last_word)

        def concluding_soon(*arguments: Any, **options: Any) -> None:
            settling()
            conclude_soon(*arguments, **options)

        # The visit calls these, so the recorder sees all that the visit does.
        admission.conclude = concluding  # type: ignore[method-assign]
        admission.conclude_soon = concluding_soon  # type: ignore[method-assign]

        def settled(settlement: Settlement) -> None:
            counts = settlement.counts
            said = None if counts is None else [counts.input, counts.cached_input, counts.cache_write, counts.output]
            self._write(
                "settled", {"id": ident, "as": settlement.settled_as, "costs": settlement.costs, "counts": said}
            )
            report(settlement)

        visit.report = settled

    def _write(self, kind: str, row: dict[str, object]) -> None:
        os.write(self._file, json.dumps({"is": kind, "at": time.time_ns() // 1_000, **row}).encode() + b"\n")


def create_recorded_app() -> LimitMiddleware:
    """Return the proxy as ``sluicegate proxy`` runs it, with a recorder in front of the upstream."""
    book.PROLONGED_SECONDS = float(os.environ[LIFE])  # type: ignore[misc] # a minute would be long to wait
    app = create_app()
    app.app = Recorder(app.app, Path(os.environ[LEDGER]))
    return app


def main() -> int:
    """Run the proxy until it is stopped, and return the exit status."""
    parser = argparse.ArgumentParser()
    servers.add_options(parser, port=8080, server="uvicorn")
    return servers.serve("proof", _APP, parser.parse_args(), grace=30)


if __name__ == "__main__":
    sys.exit(main())
