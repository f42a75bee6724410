"""The models that requests asked for lately, as the rows of metered requests count them."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from controlplane.objects.prices.seen import seen_lately, unpriced, usage_table
from tests.factories import LearnedEstimateFactory, ModelPriceFactory

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(usage_table() is None, reason="needs the rows of metered requests"),
]


def add_usage(model, *, days=0, period="day", **counts):
    """Count requests for a model as a drain does."""
    at = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days)
    key = {"period": period, "at": at, "project_id": "proj_1", "token_id": f"tok_{days}", "settled_as": "exact"}
    return usage_table().objects.create(model=model, **key, **counts)


@pytest.fixture
def usage(store):
    ModelPriceFactory(pattern="gpt-*", of_the_catalogue=True, input=1)
    ModelPriceFactory(pattern="gpt-4o", input=2)
    add_usage("gpt-4o", requests=5, input=10, cached_input=2, cache_write=1, output=7, micros=900)
    add_usage("gpt-4o", days=3, requests=1, input=1, output=1, micros=100)
    add_usage("gpt-4o", days=31, requests=9, micros=9)
    add_usage("gpt-4o", period="hour", requests=5, micros=900)
    add_usage("gpt-5", requests=2, micros=5_000)
    add_usage("llama", requests=3, input=4)
    add_usage("", requests=8)


def test_models_without_a_price_come_first(usage):
    """Then by what they cost; each row is counted once, and what no meter could read is no model."""
    seen = seen_lately(timezone.now())
    assert [model.model for model in seen] == ["llama", "gpt-5", "gpt-4o"]
    assert [model.price and model.price.rates.input for model in seen] == [None, 1, 2]
    assert [model.is_operators for model in seen] == [False, False, True]
    last = seen[-1]
    assert (last.requests, last.input, last.output, last.micros) == (6, 14, 8, 1_000)


def test_what_would_have_no_price_is_named(usage):
    assert [model.model for model in unpriced(timezone.now())] == ["llama"]
    assert len(unpriced(timezone.now(), [])) == 3


def test_the_page_offers_to_set_a_price(usage, client):
    client.force_login(User.objects.create_superuser("ann", "ann@example.org", "correct horse"))
    page = client.get("/admin/prices/modelprice/").content.decode()
    assert "1 model has no price." in page
    assert '/admin/prices/modelprice/add/?pattern=llama"' in page
    assert "0.001 USD" in page


def test_what_was_learned_is_shown_to_operators(usage, client):
    """It says which models other projects ask for."""
    LearnedEstimateFactory(name="openai/gpt-5/openai-chat", requests=1_234, projects=7, error=213)
    LearnedEstimateFactory(kind="tool", name="web_search", numbers=[12_345], error=None)
    client.force_login(User.objects.create_superuser("ann", "ann@example.org", "correct horse"))
    page = client.get("/admin/prices/modelprice/").content.decode()
    row = page[page.index("openai/gpt-5/openai-chat") :]
    assert "<td>0.300 a byte</td>" in row
    assert [row.index(text) for text in ("1,234", ">7<", "21.3 %", "web_search", "12,345 tokens a use")]
