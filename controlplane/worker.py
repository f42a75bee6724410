from contextlib import suppress
from functools import partial
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer


class Consumer(CeleryConsumer):
    """
    Come back soon after the broker does.

    Celery waits two seconds longer after each failure, up to half a minute. The broker is the store, and a store that
    came back empty is to be refilled within ten seconds.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # A task that ends just as the store goes is acknowledged over a transport that is closed already: kombu asks
        # for its host name, finds none there, and would end the worker instead of connecting again.
        self.connection_errors = (*self.connection_errors, AttributeError)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        # The same once more where the lost connection is closed with tasks that nobody has acknowledged: kombu would
        # put them back over it. The broker has them still, or lost them with itself.
        with suppress(AttributeError):
            super().on_connection_error_after_connected(exc)

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(conn.ensure_connection, interval_start=1, interval_step=0, interval_max=1)
        return super().ensure_connected(conn)
