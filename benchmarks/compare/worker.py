"""
The process that runs blocks of calls with the ``enforcement`` of one tree.

``python -m benchmarks.compare.worker TREE STORE_URL PREFIX`` reads one JSON request a line from its standard input and
answers each with one line: ``{"do": "enter", "shape": NAME}``, ``{"do": "block", "calls": N}``, ``{"do": "leave"}``.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from benchmarks.compare.tree import take

if TYPE_CHECKING:
    from benchmarks.compare.shapes import Site, Timed

CHUNKS = 50
"""
A block is timed in so many chunks, and the first quartile of them counts. On a busy machine another process has the
core during some of the chunks. The mean of a block then varies five times as much as its quartile.
"""
TRIAL_CALLS = 400


class Worker:
    """
    Run blocks of one shape after the other.

    Args:
        site: The store, and what is published there.
        shapes: How each shape is set up, by its name.
    """

    def __init__(self, site: Site, shapes: dict[str, Any]) -> None:
        self._site = site
        self._shapes = shapes
        self._stack = ExitStack()
        self._timed: Timed | None = None

    def enter(self, shape: str) -> dict[str, Any]:
        """Set up a shape and return how long one call takes about. Nothing is returned if the tree cannot run it."""
        from benchmarks.compare.shapes import Missing

        try:
            self._timed = timed = self._stack.enter_context(self._shapes[shape](self._site))
        except Missing:
            return {}
        timed.warm()
        gc.collect()
        gc.freeze()  # what was set up is not to be visited by each collection inside a block
        timed.run(timed.step)
        calls = -(-TRIAL_CALLS // timed.step) * timed.step
        return {"ns": timed.run(calls) / calls, "step": timed.step * CHUNKS, "most": timed.most}

    def block(self, calls: int) -> dict[str, Any]:
        """Run a block and return the nanoseconds of a call, and whether all went as the shape wants it."""
        timed = self._timed
        if timed is None:
            raise RuntimeError("No shape was entered.")
        a_chunk = calls // CHUNKS
        timed.warm()
        timed.prepare(a_chunk * (CHUNKS + 1))
        timed.run(a_chunk)  # warms caches and the connection
        spans = [timed.run(a_chunk) for _ in range(CHUNKS)]
        return {"ns": statistics.quantiles(spans)[0] / a_chunk, "problem": timed.problem()}

    def leave(self) -> dict[str, Any]:
        """Take down the shape."""
        self._stack.close()
        self._timed = None
        gc.unfreeze()
        return {}


def serve(worker: Worker, requests: Any, answers: Any) -> None:
    """Answer requests until there are no more. What goes wrong ends the process."""
    for line in requests:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


def main(arguments: Sequence[str]) -> None:
    """Take the tree, open the store, serve."""
    tree, url, prefix = arguments
    take(tree)
    from benchmarks.compare.async_shapes import ASYNC_SHAPES, loop
    from benchmarks.compare.metered_shapes import METERED_SHAPES
    from benchmarks.compare.shapes import SYNC_SHAPES, Site

    logging.disable()  # a store that is away on purpose is no news
    # What anything prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with Site(url, prefix) as site, loop():
        worker = Worker(site, {**SYNC_SHAPES, **ASYNC_SHAPES, **METERED_SHAPES})
        print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
        serve(worker, sys.stdin, answers)
        worker.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
