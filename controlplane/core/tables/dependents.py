"""The objects that are deleted with some rows, and those that prevent it, counted by the database instead of read."""

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Any

from django.db.models import CASCADE, PROTECT, RESTRICT, ManyToOneRel, Model, Q, QuerySet

Found = tuple[type[Model], QuerySet]


class Dependents:
    """
    The rows that go with some rows if these are deleted, found by the foreign keys that lead to them.

    Args:
        rows: A query of the rows, or some of them as a list.
    """

    def __init__(self, model: type[Model], rows: QuerySet | Sequence[Model]) -> None:
        self._keys: Any = rows.order_by().values("pk") if isinstance(rows, QuerySet) else [row.pk for row in rows]
        # The ways from a model to the model of the rows, such as "token__project".
        self._deleted: dict[type[Model], list[str]] = {}
        self._keeping: dict[type[Model], list[str]] = {}
        self._follow(model, "")

    def _follow(self, model: type[Model], way: str) -> None:
        self._deleted.setdefault(model, []).append(way or "pk")
        for relation in model._meta.get_fields(include_hidden=True):
            if not isinstance(relation, ManyToOneRel):  # of which a one-to-one relation is a kind
                continue
            other, name = relation.field.model, relation.field.name
            longer = f"{name}__{way}" if way else name
            if relation.on_delete is PROTECT or relation.on_delete is RESTRICT:
                self._keeping.setdefault(other, []).append(longer)
            elif relation.on_delete is CASCADE:
                self._follow(other, longer)

    def deleted(self) -> Iterator[Found]:
        """Yield each model and the query of its rows that are deleted, first that of the rows themselves."""
        for model, ways in self._deleted.items():
            if not model._meta.auto_created:  # what only joins two models is no object of its own
                yield model, model._base_manager.filter(self._leads(ways))

    def keeping(self) -> Iterator[Found]:
        """Yield each model and the query of its rows that stay and must not lose what they refer to."""
        for model, ways in self._keeping.items():
            rows = model._base_manager.filter(self._leads(ways))
            yield model, rows.exclude(self._leads(self._deleted[model])) if model in self._deleted else rows

    def _leads(self, ways: list[str]) -> Q:
        return reduce(or_, (Q(**{f"{way}__in": self._keys}) for way in ways))
