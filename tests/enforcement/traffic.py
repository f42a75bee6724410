"""Requests that go on while something happens."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def traffic(send: Callable[[], int], clients: int = 4) -> Iterator[Counter[int]]:
    """
    Send requests while the block runs, and count the statuses of the responses.

    Args:
        send: Sends one request, and returns the status of its response.
        clients: How many send at the same time.
    """
    statuses: Counter[int] = Counter()
    stop, lock = threading.Event(), threading.Lock()

    def go_on() -> None:
        while not stop.wait(0.005):
            status = send()
            with lock:
                statuses[status] += 1

    with ThreadPoolExecutor(clients) as pool:
        sent = [pool.submit(go_on) for _ in range(clients)]
        try:
            yield statuses
        finally:
            stop.set()
            for each in sent:
                each.result()
