"""The pages of a list that is sorted by a column of other rows."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db.models import F

from controlplane.core.tables.paging import CappedPaginator
from controlplane.objects.projects.models import Token
from controlplane.web.pages.tokens.page import TokenPaginator
from tests.factories import PolicyFactory, TokenFactory

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("per_page", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("by", ["policy__slug", "-policy__slug"])
@pytest.mark.parametrize("left_out", [(), ("a",), (None,), ("a", "b")])
def test_pages_sorted_by_another_row_follow_each_other(by, per_page, left_out):
    """Each row once, and those without a policy last, whatever the order of the others."""
    policies = {slug: PolicyFactory(slug=slug) for slug in "ba"} | {None: None}
    for slug in ("b", "a", None, None, "b", "a", None):
        if slug not in left_out:
            TokenFactory(policy=policies[slug])
    rows = Token.objects.order_by(by, "-pk")

    pages = CappedPaginator(rows, per_page)

    shown = [token.pk for number in pages.page_range for token in pages.page(number)]
    order = F("policy__slug").desc(nulls_last=True) if by[0] == "-" else F("policy__slug").asc(nulls_last=True)
    assert shown == list(rows.order_by(order, "-pk").values_list("pk", flat=True))


@pytest.mark.parametrize("per_page", [1, 2, 4])
@pytest.mark.parametrize("by", ["last_used_at", "-last_used_at"])
def test_the_day_of_the_last_use_sorts_by_its_time(by, per_page):
    """The day has an index, and gives the same order. Who looks for the newest use does not leaf through "never"."""
    noon = datetime(2026, 11, 27, 12, tzinfo=UTC)
    for hours in (0, None, 13, 1, 11, 12, 40, None, -13):
        at = None if hours is None else noon - timedelta(hours=hours)
        TokenFactory(last_used_at=at, last_used_on=at and at.date())
    rows = Token.objects.order_by(by, "-pk")

    pages = TokenPaginator(rows, per_page)

    shown = [token.pk for number in pages.page_range for token in pages.page(number)]
    at = F("last_used_at")
    order = at.desc(nulls_last=True) if by[0] == "-" else at.asc(nulls_first=True)
    assert shown == list(rows.order_by(order, "-pk").values_list("pk", flat=True))
