"""Extend redis-py's client by operations that differ between one server and a cluster."""

from __future__ import annotations

from redis import ConnectionPool, Redis


class StoreClient(Redis):
    """
    A client of a store that is one server at a time.

    :class:`~enforcement.store.cluster.client.ClusterClient` overrides every method, so callers need not know which
    they have.
    """

    def pool_of(self, key: str) -> ConnectionPool:
        """Return the connection pool of the server that owns a key. Raises redis-py's errors."""
        return self.connection_pool

    def primaries(self) -> list[tuple[str, Redis]]:
        """
        Return a list of (name, client of that primary alone) for all primaries, which here is only this client. Raises
        redis-py's errors.
        """
        return [("store", self)]

    def reconnect(self) -> None:
        """Close all connections, as one may hold half a reply, or lead to a server that was replaced."""
        self.connection_pool.disconnect()

    def drop_inherited(self) -> None:
        """
        Close the connections that a forked child has inherited, without sending anything to the store.

        A thread that used one at the moment of the fork does not exist in the child, so nobody else would close it.
        """
        # After a fork, redis-py itself forgets the connections in use. The names are private, hence the defaults.
        for name in ("_available_connections", "_in_use_connections"):
            for connection in list(getattr(self.connection_pool, name, ())):
                connection.disconnect()
