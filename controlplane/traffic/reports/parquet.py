"""
Usage as a file of Parquet, for those who keep it for years or read it with other tools.

Rows are read by a cursor of the database and written in groups, so the memory does not grow with their number.
"""

import os
import tempfile
from collections.abc import Iterable
from decimal import Decimal
from itertools import batched
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import QuerySet

from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.traffic.usage.models import MeteredRow, UsageRow
from enforcement.extras import Requirement
from enforcement.model.metered import MONEY

with Requirement("The export to Parquet", "sluicegate[parquet]"):
    import pyarrow as pa
    from pyarrow import parquet as pq

# A reader skips whole groups by their times, and a group of each is in memory once while it is written.
ROWS_A_GROUP = 50_000
ROWS_AT_ONCE = 5_000
# Millionths of a unit, with room for all that 64 bits count.
DECIMALS = 6
_MICRO = Decimal(1).scaleb(-DECIMALS)

_NAME, _COUNT = pa.dictionary(pa.int32(), pa.string()), pa.int64()
_TYPES: dict[str, pa.DataType] = {
    "at": pa.timestamp("us", tz="UTC"),
    "token_id": pa.string(),
    "approximate": pa.bool_(),
    "money": pa.decimal128(38, DECIMALS),
    **dict.fromkeys(
        ("period", "project_id", "project", "policy_id", "policy", "limit_name", "unit", "model", "settled_as"), _NAME
    ),
}


def write(rows: QuerySet[UsageRow] | QuerySet[MeteredRow], path: Path) -> int:
    """
    Write rows to a file, in the order of their times, and return how many they were.

    The file appears when it is complete, in the place of an earlier one.

    Raises:
        OSError: The file cannot be written.
    """
    read = _columns(rows.model)
    schema, number = schema_of(rows.model), 0
    values = rows.order_by("at", "id").values_list(*read).iterator(chunk_size=ROWS_AT_ONCE)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        with pq.ParquetWriter(name, schema, compression="zstd") as writer:
            for some in batched(values, ROWS_A_GROUP):
                columns = _with_more(rows.model, dict(zip(read, zip(*some, strict=True), strict=True)))
                writer.write_table(pa.table([columns[column] for column in schema.names], schema=schema))
                number += len(some)
        Path(name).chmod(0o600)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return number


def _columns(model: type[UsageRow | MeteredRow]) -> list[str]:
    """Return the columns of a model that say something to others."""
    return [field.attname for field in model._meta.concrete_fields if field.attname not in ("id", "activity")]


def schema_of(model: type[UsageRow | MeteredRow]) -> pa.Schema:
    """Return the columns of a model, and those that are added. The currency of ``money`` is in the metadata."""
    names = _columns(model)
    names.insert(names.index("project_id") + 1, "project")
    if "policy_id" in names:
        names.insert(names.index("policy_id") + 1, "policy")
    columns = [(name, _TYPES.get(name, _COUNT)) for name in (*names, "money")]
    return pa.schema(columns, metadata={"currency": settings.CURRENCY, "table": model._meta.model_name or ""})


def _with_more(model: type[UsageRow | MeteredRow], columns: dict[str, tuple[Any, ...]]) -> dict[str, Iterable[Any]]:
    """Return the columns with the slugs of ids, which are empty for deleted objects, and with money as a decimal."""
    more: dict[str, Iterable[Any]] = {"project": _slugs(Project, columns["project_id"])}
    if model is UsageRow:
        more["policy"] = _slugs(Policy, columns["policy_id"])
        charged = zip(columns["cost"], columns["unit"], strict=True)
        more["money"] = [_money(cost) if unit == MONEY else None for cost, unit in charged]
    else:
        more["money"] = list(map(_money, columns["micros"]))
    return {**columns, **more}


def _slugs(model: type[Project | Policy], ids: tuple[str, ...]) -> list[str]:
    found: dict[str, str] = {}
    for some in batched(sorted(set(ids)), 1_000):
        found |= dict(model._base_manager.filter(pk__in=some).values_list("pk", "slug"))
    return [found.get(ident, "") for ident in ids]


def _money(micros: int) -> Decimal:
    return Decimal(micros) * _MICRO
