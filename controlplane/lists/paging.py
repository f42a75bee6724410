"""Pages of long lists, which neither count nor sort more than they must."""

from typing import Any, ClassVar

from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.utils.functional import cached_property

from controlplane.lists.counting import MOST, MoreThan, capped


class CappedPaginator(Paginator):
    """A paginator that counts 10,000 rows at most. The rows after them are found by a search or a filter."""

    most: ClassVar[int] = MOST

    @cached_property
    def count(self) -> int:
        return capped(self.object_list, self.most) if isinstance(self.object_list, QuerySet) else super().count

    @property
    def template_name(self) -> str:
        """The theme shows the pages by this template, or by its own one if it is empty."""
        return "admin/sluicegate/capped_pages.html" if isinstance(self.count, MoreThan) else ""

    def _get_page(self, rows: Any, number: int, paginator: Paginator) -> Any:
        if isinstance(rows, QuerySet):
            # The database sorts keys faster than whole rows that are joined with others.
            keys = list(rows.values_list("pk", flat=True))
            found = self.object_list.order_by().in_bulk(keys)
            rows = [found[key] for key in keys if key in found]
        return super()._get_page(rows, number, paginator)
