from contextlib import suppress
from functools import partial
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer


class Consumer(CeleryConsumer):
    """
    A consumer that reconnects within a second after the broker is back.

    Celery waits two seconds longer after each failure, up to half a minute. The broker is the store, and an empty store
    must be filled again within ten seconds.
    """

    connection_errors: tuple[type[BaseException], ...]

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        # A task that ends while the store fails is acknowledged over a closed transport. There kombu raises
        # AttributeError for the host name, which would end the worker instead of a reconnection.
        self.connection_errors = (*self.connection_errors, AttributeError)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        # The same error comes when a lost connection is closed with tasks that are not acknowledged, because kombu
        # would return them over it. They are still in the broker, or the broker has lost them.
        with suppress(AttributeError):
            super().on_connection_error_after_connected(exc)

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(conn.ensure_connection, interval_start=1, interval_step=0, interval_max=1)
        return super().ensure_connected(conn)
