"""The prices of the catalogue: shown before they are published, and the same as the catalogue computes."""

import json
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.prices import catalogue
from controlplane.objects.prices.models import ModelPrice
from controlplane.releases.publishing.models import Revision
from enforcement.metering.amounts import Usage
from enforcement.metering.price_documents import parse_prices
from enforcement.model.strict_json import dumps
from tests.factories import ModelPriceFactory

genai_prices = pytest.importorskip("genai_prices", reason="needs genai-prices, which sluicegate[controlplane] names")

pytestmark = pytest.mark.django_db(transaction=True)

FEES = "calls 10000, file_searches 2500"
NOW = datetime(2026, 11, 26, tzinfo=UTC)


def update(*args, **options):
    """Return what the command prints."""
    out = StringIO()
    call_command("update_prices", *args, stdout=out, **options)
    return out.getvalue()


def test_a_dry_run_shows_everything_and_changes_nothing(store):
    shown = update("--dry-run")
    assert "added gpt-4o-mini: input 0.15, output 0.6, cached_input 0.075, calls 10000, file_searches 2500\n" in shown
    assert shown.endswith("Nothing was changed, because of --dry-run.\n")
    assert not ModelPrice.objects.exists()
    assert not Revision.objects.exists()


def test_an_update_is_one_change_with_old_and_new(store):
    update(reason="first")
    price = ModelPrice.objects.get(pattern="gpt-4o-mini")
    ModelPrice.objects.filter(pk=price.pk).update(input=1)
    ModelPrice.objects.get(pattern="gpt-4o").delete()
    gone = ModelPriceFactory(of_the_catalogue=True, pattern="gone")
    own = ModelPriceFactory(pattern="gpt-4o-mini", input=7)

    shown = update("--reason", "news")

    assert [line for line in shown.splitlines() if line.startswith(("added", "changed", "removed"))] == [
        "removed gone: input 1, output 4",
        f"changed gpt-4o-mini: input 0.000001, output 0.6, cached_input 0.075, {FEES} -> "
        f"input 0.15, output 0.6, cached_input 0.075, {FEES}",
        f"added gpt-4o: input 2.5, output 10, cached_input 1.25, {FEES}",
    ]
    assert "1 added, 1 changed, 1 removed." in shown
    assert shown.endswith("Published as revision 2.\n")
    entries = AuditEntry.objects.filter(reason="news")
    assert sorted(entries.values_list("action", "object_label")) == [
        ("modelprice.create", "gpt-4o"),
        ("modelprice.delete", "gone"),
        ("modelprice.update", "gpt-4o-mini"),
    ]
    assert len(set(entries.values_list("change", flat=True))) == 1
    assert ModelPrice.objects.get(pattern="gpt-4o-mini", source="catalogue").pk == price.pk
    assert list(ModelPrice.objects.filter(source="operator")) == [own]
    assert not ModelPrice.objects.filter(pk=gone.pk).exists()
    assert update().endswith("Nothing was changed.\n")
    assert Revision.objects.count() == 2


def test_another_currency_takes_no_prices(store, settings):
    settings.CURRENCY = "EUR"
    with pytest.raises(CommandError, match="The catalogue has prices in USD, and this installation counts EUR"):
        update()


def test_an_unknown_provider_is_named(store):
    with pytest.raises(CommandError, match=r"--provider: must be one of anthropic, .*, got 'opnai'"):
        update("--provider", "opnai")


def test_a_list_that_cannot_be_fetched_changes_nothing(store, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(CommandError, match="The list of prices could not be fetched: "):
        update("--fetch")
    assert not ModelPrice.objects.exists()


def listed(provider="openai", **prices):
    """Return a provider of a list, with one model."""
    model = {"id": "m", "match": {"equals": "m"}, "prices": prices}
    return {"id": provider, "name": provider, "api_pattern": "x", "models": [model] if prices else []}


GOOD = [listed(name, input_mtok=1, output_mtok=2) for name in catalogue.PROVIDERS]


@pytest.fixture
def publisher(monkeypatch):
    """``publisher(body)``: a server from which the list of prices is fetched."""
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def serve(body, status=200):
        def answer(handler):
            handler.send_response(status)
            handler.end_headers()
            handler.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        methods = {"do_GET": answer, "log_message": lambda *_: None}
        server.RequestHandlerClass = type("Handler", (BaseHTTPRequestHandler,), methods)
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(genai_prices, "UpdatePrices", partial(genai_prices.UpdatePrices, url=url))

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_fetched_list_is_taken(store, publisher):
    publisher([listed("openai", input_mtok=3, output_mtok=4), *GOOD[1:]])
    assert "added m: input 3, output 4\n" in update("--fetch")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"oops", 503, "could not be fetched: HTTPStatusError"),
        (b"<html>login</html>", 200, "could not be fetched: JSONDecodeError"),
        (b"", 200, "could not be fetched: JSONDecodeError"),
        ({"error": "gone"}, 200, "could not be fetched: ValueError"),
        ([{"id": "openai"}], 200, "could not be fetched: ValidationError"),
        ([], 200, "The fetched list has no provider 'openai', whose prices would all be removed."),
        (GOOD[:2], 200, "The fetched list has no provider 'google', whose prices would all be removed."),
        (
            [*GOOD[:2], listed("google"), *GOOD[3:]],
            200,
            "The list has no price of a model of 'google', whose prices would",
        ),
        ([listed("openai", input_mtok="NaN"), *GOOD[1:]], 200, "could not be fetched|cannot be read"),
        ([listed("openai", input_mtok="Infinity"), *GOOD[1:]], 200, "could not be fetched|cannot be read"),
        ([listed("openai", input_mtok=-1), *GOOD[1:]], 200, "m, input: Must be an integer from 0"),
    ],
)
def test_a_list_that_is_none_changes_nothing(store, publisher, body, status, says):
    """The error says so on one line, in words."""
    before = ModelPriceFactory(of_the_catalogue=True, pattern="gpt-4o")
    publisher(body, status)

    with pytest.raises(CommandError, match=says) as refused:
        update("--fetch")

    assert "Nothing was changed" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(ModelPrice.objects.values_list("pk", flat=True)) == [before.pk]
    assert not Revision.objects.exists()


def test_a_store_that_is_away_delays_the_publication(store):
    store.kill()
    assert update().endswith("Saved. The change will be published when the store is available.\n")
    assert ModelPrice.objects.exists()


@pytest.mark.parametrize("provider", catalogue.PROVIDERS)
@pytest.mark.parametrize("size", [1_000, 250_000])
def test_each_model_costs_what_the_catalogue_computes(provider, size):
    """The package itself is the judge, for input below and above the tiers, with cached input."""
    found = catalogue.read([provider])
    document = {"schema": 1, "revision": 1, "prices": [price.as_entry() for price in found.prices]}
    prices = parse_prices(dumps(document))
    judged = 0
    for model in next(one for one in genai_prices.data.providers if one.id == provider).models:
        for at in (NOW, NOW - timedelta(days=400)):
            price = prices.find(model.id, int(at.timestamp() * 1e6))
            if price is None or any(model.id in line for line in found.left_out):
                continue
            cached = 0 if price.rates.cached_input is None else size // 4
            usage = genai_prices.Usage(input_tokens=size, cache_read_tokens=cached, output_tokens=700)
            cost = genai_prices.calc_price(usage, model.id, provider_id=provider, genai_request_timestamp=at)
            if cost.model.id != model.id or _has_other_prices(cost.model_price):
                continue
            ours = price.micros(Usage(size - cached, cached, 0, 700))
            assert 0 <= ours - cost.total_price * 1_000_000 < 1, (model.id, price)
            judged += 1
    assert judged >= 15


def _has_other_prices(price):
    """Return whether the package leaves something out that we charge as what is dearest."""
    return price.input_mtok is None


def test_further_classes_and_fees_are_taken(store):
    """Sound, images and what is kept for an hour have prices of their own, and a thousand searches a fee."""
    found = {price.pattern: price for price in catalogue.read().prices}
    assert found["gemini-2.5-flash-image"].classes["output_image"] == 30_000_000
    assert found["gpt-4o"].classes == {"file_searches": 2_500_000_000}
    assert found["gpt-4o"].calls == 10_000_000_000
    claude = next(price for name, price in found.items() if name.startswith("claude-sonnet-4-5"))
    assert claude.classes["cache_write_1h"] == 6_000_000
    # A model that makes nothing but images has one price of output.
    assert found["gpt-image-1"].classes["output_image"] == found["gpt-image-1"].output
