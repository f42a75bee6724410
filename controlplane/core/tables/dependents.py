"""The objects that are deleted with some rows, and those that prevent it, counted by the database instead of read."""

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Any

from django.db.models import CASCADE, PROTECT, RESTRICT, Model, Q, QuerySet

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
            if not (relation.auto_created and not relation.concrete and (relation.one_to_many or relation.one_to_one)):
                continue
            longer = f"{relation.field.name}__{way}" if way else relation.field.name
            if relation.on_delete in (PROTECT, RESTRICT):
                self._keeping.setdefault(relation.related_model, []).append(longer)
            elif relation.on_delete is CASCADE:
                self._follow(relation.related_model, longer)

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
