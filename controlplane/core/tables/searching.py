"""The search of lists with many rows."""

from functools import reduce
from operator import or_
from typing import ClassVar

from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.text import smart_split, unescape_string_literal

from controlplane.core.tables.indexing import finds_parts

# A shorter word has no trigram of its own, so that the index does not help to find it within a text.
SHORTEST_PART = 3


class IndexedSearch:
    """
    A mixin for a list of many rows. Its search reads indexes, and never all rows. It comes before ModelAdmin.

    Attributes:
        beginnings: The columns that are searched, for a part if the database can do that, else for the beginning.
        exact_beginnings: Columns that are found by their beginning, with its case.
        parts: More columns, which are searched only for a part.
        wholes: The columns that are found by their whole value only.
        searches: What the search finds, in words, if the database finds parts and if not.
        has_few_rows: Whether reading all rows takes no time, so that parts are always found.
    """

    beginnings: ClassVar[tuple[str, ...]] = ()
    exact_beginnings: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()
    wholes: ClassVar[tuple[str, ...]] = ()
    searches: ClassVar[tuple[str, str]] = ("", "")
    has_few_rows: ClassVar[bool] = False
    model: type[Model]

    @property
    def search_fields(self) -> tuple[str, ...]:
        return (*self.beginnings, *self.exact_beginnings, *self.parts, *self.wholes)

    @property
    def search_help_text(self) -> str:
        """A help text that says what the search finds, which depends on the database."""
        return self.searches[0 if self._finds_parts else 1]

    @property
    def _finds_parts(self) -> bool:
        return self.has_few_rows or finds_parts(self.model._meta.db_table)

    def get_search_results(self, request: HttpRequest, rows: QuerySet, term: str) -> tuple[QuerySet, bool]:
        """Return the rows that match each word, and False, because none of them is found twice."""
        for word in smart_split(term):
            if word.startswith(('"', "'")) and word[0] == word[-1]:
                word = unescape_string_literal(word)
            rows = rows.filter(self.matching(request, word))
        return rows, False

    def matching(self, request: HttpRequest, word: str) -> Q:
        """Return the condition of the rows that match one word."""
        parts = self._finds_parts and len(word) >= SHORTEST_PART
        lookup, columns = ("icontains", (*self.beginnings, *self.parts)) if parts else ("istartswith", self.beginnings)
        conditions = [Q(**{f"{name}__{lookup}": word}) for name in columns]
        conditions += [Q(**{f"{name}__startswith": word}) for name in self.exact_beginnings]
        return reduce(or_, [*conditions, *(Q(**{name: word}) for name in self.wholes)])
