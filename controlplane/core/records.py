"""Rows whose changes are recorded."""

from collections.abc import Iterator
from typing import Any

from django.db import models


class RecordedModel(models.Model):
    """A row whose changes the audit records. Enforcers know nothing of it, unless ``touches()`` says so."""

    class Meta:
        abstract = True

    def as_record(self) -> dict[str, Any]:
        """Return the fields of this row that an audit entry keeps, as a new dictionary."""
        raise NotImplementedError

    def as_compared(self) -> dict[str, Any]:
        """Return what an ETag of this row stands for."""
        return self.as_record()

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield the pairs of a kind and an id for the outbox entries that a change of this row needs."""
        yield from ()

    def dependents(self) -> "Iterator[RecordedModel]":
        """Yield all rows with a record of their own that are deleted with this one."""
        yield from ()
