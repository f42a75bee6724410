"""
A digest of the keys of rows, which shows whether a selection is still the same.

It begins with their number. Of 100,000 rows, PostgreSQL makes it without sending a key.
"""

import hashlib
from collections.abc import Sequence

from django.db import connection
from django.db.models import BigIntegerField, Count, DecimalField, F, Func, QuerySet, Sum, TextField, Value
from django.db.models.functions import Cast

_SEEDS = (0, 1)


def digest_of(rows: QuerySet) -> str:
    """Return a digest of the primary keys of *rows*, in any order."""
    if connection.vendor != "postgresql":
        return _digest_of([str(pk) for pk in rows.order_by().values_list("pk", flat=True)])
    keys = rows.order_by().values(selected_key=Cast("pk", TextField()))
    sums = {f"sum_{seed}": Sum(_hashed(seed), output_field=_whole()) for seed in _SEEDS}
    found = keys.aggregate(count=Count("selected_key"), **sums)
    return _joined(found["count"], *(found[name] for name in sums))


def digest_of_keys(keys: Sequence[str]) -> str:
    """Return the digest that :func:`digest_of` returns of the rows with these keys."""
    if connection.vendor != "postgresql":
        return _digest_of(keys)
    sums = ", ".join(f"SUM(hashtextextended(key, {seed}))" for seed in _SEEDS)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*), {sums} FROM unnest(%s::text[]) AS keys (key)", [list(keys)])
        return _joined(*cursor.fetchone())


def _hashed(seed: int) -> Func:
    return Func(F("selected_key"), Value(seed), function="hashtextextended", output_field=BigIntegerField())


def _whole() -> DecimalField:
    # The sum of 64-bit numbers has more digits than a BigIntegerField.
    return DecimalField(max_digits=40, decimal_places=0)


def _joined(count: int, *sums: int | None) -> str:
    return "-".join([str(count), *(f"{int(number or 0) % 2**64:016x}" for number in sums)])


def _digest_of(keys: Sequence[str]) -> str:
    return f"{len(keys)}-" + hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:32]


def count_in(digest: str) -> int:
    """Return the number of rows of which somebody posts a digest, or -1 if it is none."""
    count = digest.partition("-")[0]
    return int(count) if count.isdecimal() and len(count) < 10 else -1
