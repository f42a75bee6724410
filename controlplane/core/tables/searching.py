"""The search of lists with many rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.text import smart_split, unescape_string_literal

from controlplane.core.tables.indexing import finds_parts

# A shorter word has no trigram of its own, so that the index does not help to find it within a text.
SHORTEST_PART = 3

# Takes rows and the words of a search, and returns both after it has read some of the words in a way of its own.
Reading = Callable[[QuerySet[Any], list[str]], tuple[QuerySet[Any], list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedSearch:
    """
    The search of a list of many rows. It reads indexes, and never all rows.

    Attributes:
        beginnings: The columns that are searched, for a part if the database can do that, else for the beginning.
        exact_beginnings: Columns that are found by their beginning, with its case.
        parts: More columns, which are searched only for a part.
        wholes: The columns that are found by their whole value only.
        help: What the search finds, in words, if the database finds parts and if not.
        has_few_rows: Whether reading all rows takes no time, so that parts are always found.
        readings: What reads words before the columns are searched for the others.
        also: Returns a condition of more rows that match a word, of those that the user of a request may see.
    """

    beginnings: tuple[str, ...]
    exact_beginnings: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    wholes: tuple[str, ...] = ()
    help: tuple[str, str] = ("", "")
    has_few_rows: bool = False
    readings: tuple[Reading, ...] = ()
    also: Callable[[HttpRequest, str], Q] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.beginnings, *self.exact_beginnings, *self.parts, *self.wholes)

    def help_for(self, model: type[Model]) -> str:
        """Return what the search finds, which depends on the database."""
        return self.help[0 if self._finds_parts(model) else 1]

    def find[M: Model](self, rows: QuerySet[M], term: str, request: HttpRequest | None = None) -> QuerySet[M]:
        """Return the rows that match each word. None of them is found twice."""
        if self.readings:
            words = term.split()
            for reading in self.readings:
                rows, words = reading(rows, words)
            term = " ".join(words)
        for word in smart_split(term):
            if word.startswith(('"', "'")) and word[0] == word[-1]:
                word = unescape_string_literal(word)
            matching = self._matching(rows.model, word)
            rows = rows.filter(matching | self.also(request, word) if self.also and request else matching)
        return rows

    def _finds_parts(self, model: type[Model]) -> bool:
        return self.has_few_rows or finds_parts(model._meta.db_table)

    def _matching(self, model: type[Model], word: str) -> Q:
        """Return the condition of the rows that match one word."""
        parts = self._finds_parts(model) and len(word) >= SHORTEST_PART
        lookup, columns = ("icontains", (*self.beginnings, *self.parts)) if parts else ("istartswith", self.beginnings)
        conditions = [Q((f"{name}__{lookup}", word)) for name in columns]
        conditions += [Q((f"{name}__startswith", word)) for name in self.exact_beginnings]
        return reduce(or_, [*conditions, *(Q((name, word)) for name in self.wholes)])
