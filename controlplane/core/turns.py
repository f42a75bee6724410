"""Changes that are made one after the other, although no row that they share could be locked."""

from django.db import connection


def take_turn(name: str) -> None:
    """
    Wait until no other transaction has the turn of this name, and keep it until the open transaction ends.

    Locked rows cannot do this if the change itself decides which rows they are. A transaction that waited for such a
    row keeps its lock although it then needs another one, and two of them wait for each other.
    """
    # A transaction of SQLite has the whole database from its start, so it has every turn.
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"sluicegate:{name}"])
