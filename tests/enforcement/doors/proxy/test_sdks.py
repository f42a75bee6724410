"""The SDKs of providers through the metered proxy: what they return, what they pay, and how they are refused."""

import pytest

from enforcement import Limit, Limiter
from tests.enforcement.doors.conftest import serving
from tests.enforcement.doors.proxy import sdk_calls
from tests.enforcement.doors.proxy.conftest import running, url_of
from tests.enforcement.doors.proxy.invoicing import InvoicingProvider
from tests.scale import scale

SECRET = "provider-secret"
TOKENS = Limit(name="tokens", unit="tokens", quota=1_000_000, window_seconds=3_600)
MONEY = Limit(name="usd", unit="micros", quota=1_000_000, calendar="month")
PRICE = {"model": "*-x", "input": 1_000_000, "output": 4_000_000}
SAID = "It is sunny."
METERED = {
    "openai-chat": SAID,
    "openai-chat-stream": [SAID, False],
    "openai-chat-tools": ["weather", '{"city": "Paris"}'],
    "openai-chat-structured": "Paris",
    "openai-embeddings": [0.5, 0.25],
    "openai-responses": SAID,
    "openai-responses-stream": SAID,
    "azure-chat": SAID,
    "azure-chat-stream": [SAID, False],
    "anthropic-messages": SAID,
    "anthropic-messages-stream": [SAID, 7],
    "anthropic-messages-tools": ["weather", {"city": "Paris"}],
    "gemini-content": SAID,
    "gemini-content-stream": [SAID, 5],
    "gemini-content-tools": ["weather", {"city": "Paris"}],
    "gemini-content-structured": '{"city": "Paris"}',
}
UNMETERED = {
    "openai-files": "file-1",
    "openai-batches": "batch-1",
    "openai-models": ["gpt-x"],
}
# Two thirds of the time are imports of the other SDKs, whose formats and errors have tests of theirs.
SOME = ["openai-chat", "azure-chat-stream"]
ONE_EACH = [*SOME, "anthropic-messages-stream", "gemini-content"]
TOO_MANY = {"openai": "RateLimitError", "azure": "RateLimitError", "anthropic": "RateLimitError"}
FORBIDDEN = {"openai": "PermissionDeniedError", "anthropic": "PermissionDeniedError"}


@pytest.fixture(scope="module")
def sdks():
    with sdk_calls.running() as running_sdks:
        yield running_sdks


@pytest.fixture(scope="module")
def provider():
    return InvoicingProvider()


@pytest.fixture(scope="module")
def address(published, provider, tmp_path_factory):
    """A proxy with an upstream for each SDK, that gets the provider's key where that SDK sends it."""
    fields = {"openai": "authorization", "azure": "api-key", "anthropic": "x-api-key", "gemini": "x-goog-api-key"}
    file = tmp_path_factory.mktemp("proxy") / "upstreams.toml"
    published.prices(PRICE)
    with serving(provider) as upstream:
        url = str(upstream.base_url).rstrip("/")
        tables = [
            f"['/{name}']\nurl = '{url}'\ncredential_variable = 'PROVIDER_KEY'\ncredential_field = '{field}'\n"
            for name, field in fields.items()
        ]
        file.write_text("".join(tables))
        with running(published, SLUICEGATE_UPSTREAMS_FILE=str(file), PROVIDER_KEY=SECRET) as proxy:
            yield proxy.catch_up


@pytest.fixture
def call(sdks, address):
    def make(name, token, retries=0):
        return sdks.call(name, f"{address()}/{name.partition('-')[0]}", token, retries)

    return make


def used_of_limit(published, token, name="tokens"):
    with Limiter(url_of(published), timeout=1.0, lookup=1.0) as limiter:
        states = limiter.check(token, {"requests": 0, "tokens": 0, "micros": 0}).limits
        return next(state.quota - state.remaining for state in states if state.name == name)


@pytest.mark.proof
@pytest.mark.parametrize("name", scale(SOME, list(METERED)))
def test_an_sdk_gets_its_answer_and_pays_the_invoice(call, token_of, provider, published, name):
    """The added event of usage is hidden from a stream, and the upstream sees the provider's key and no token."""
    token = token_of(TOKENS, MONEY)
    provider.invoice.clear()
    provider.heads.clear()

    assert call(name, token) == ["ok", METERED[name]]
    assert len(provider.invoice) == 1
    assert used_of_limit(published, token) == provider.tokens
    assert used_of_limit(published, token, "usd") == sum(read + 4 * written for read, written in provider.invoice)
    (head,) = provider.heads
    assert token not in str(head)
    assert any(value.endswith(SECRET) for value in head.values())


@pytest.mark.proof
@pytest.mark.parametrize("name", scale(["openai-files"], list(UNMETERED)))
def test_what_has_no_meter_passes_or_is_refused_as_configured(call, token_of, published, name):
    """Files, batches and lists have no cost that could be read. The refusal is an error that the SDK knows."""
    refused, counted = token_of(TOKENS), token_of(Limit(**{**TOKENS.to_json(), "unmetered": "count_only"}))

    _, error, status, said, _ = call(name, refused)
    assert (error, status) == (FORBIDDEN[name.partition("-")[0]], 403)
    assert "The cost of this request cannot be read" in said
    assert call(name, counted) == ["ok", UNMETERED[name]]
    assert used_of_limit(published, counted) == 0


def test_an_sdk_counts_tokens_for_nothing(call, token_of, published):
    """Agents do it to watch their context, so a limit of tokens is no wall for it."""
    token = token_of(TOKENS)
    assert call("anthropic-count-tokens", token) == ["ok", 5]
    assert used_of_limit(published, token) == 0


@pytest.mark.proof
@pytest.mark.parametrize("name", scale(SOME, list(METERED)))
def test_an_sdk_shows_our_sentence_as_its_own_error(call, token_of, name):
    """OpenAI's and Anthropic's ask once, although they would try again: no wait helps. Google's obeys its caller."""
    token = token_of(Limit(name="daily", unit="tokens", quota=1, calendar="lifetime"))

    _, error, status, said, tries = call(name, token, retries=0 if name.startswith("gemini") else 3)
    assert (error, status, tries) == (TOO_MANY.get(name.partition("-")[0], "ClientError"), 429, 0)
    assert "daily can admit 1 tokens at once, but the request costs more." in said


@pytest.mark.proof
@pytest.mark.parametrize("name", scale(["openai-chat"], ONE_EACH))
def test_an_sdk_waits_as_long_as_it_should_and_succeeds(call, token_of, name):
    """One retry is enough, so the wait was not too short."""
    token = token_of(Limit(name="pace", quota=1, window_seconds=1), TOKENS)

    assert [call(name, token, retries=1)[0] for _ in range(2)] == ["ok", "ok"]


@pytest.mark.proof
@pytest.mark.parametrize("name", scale(["openai-chat"], ["openai-chat", "anthropic-messages"]))
def test_an_sdk_does_not_wait_for_the_next_month(call, token_of, name):
    """Anthropic's would sleep until then. Its caller gets the error at once instead."""
    token = token_of(Limit(name="monthly", unit="tokens", quota=40, calendar="month"))

    assert call(name, token)[0] == "ok"
    _, error, _, said, tries = call(name, token, retries=3)
    assert (error, tries) == ("RateLimitError", 0)
    assert "monthly has" in said


@pytest.mark.proof
@pytest.mark.parametrize("name", scale(SOME, ONE_EACH))
def test_a_token_that_is_not_known_is_the_sdks_error_too(call, name):
    errors = {"gemini": "ClientError"}
    _, error, status, said, _ = call(name, "sk-of-somebody-else", retries=1)
    assert (error, status) == (errors.get(name.partition("-")[0], "AuthenticationError"), 401)
    assert "The token is not known" in said


def test_an_sdk_reads_the_shape_without_a_metered_limit(call, token_of):
    """A limit of requests alone reads no body, and its denial is still the provider's error."""
    token = token_of(Limit(name="hourly", quota=1, window_seconds=3_600))

    assert call("openai-chat", token)[0] == "ok"
    _, error, status, said, _ = call("openai-chat", token)
    assert (error, status) == ("RateLimitError", 429)
    assert "hourly has 0 of 1 requests left." in said


@pytest.mark.proof
@pytest.mark.parametrize("name", scale(["openai-reports"], ["openai-reports", "anthropic-reports", "gemini-reports"]))
def test_the_objects_of_an_sdk_report_what_was_invoiced(call, token_of, provider, name):
    """``settle_from`` and ``metered`` read them, whole responses and events of streams, and find their format."""
    provider.invoice.clear()
    _, reports = call(name, token_of(TOKENS))

    assert [tokens for _, tokens in reports] == as_called(name, [sum(row) for row in provider.invoice])
    assert {model for model, _ in reports} == {
        {"openai": "gpt-x", "anthropic": "claude-x"}.get(name.partition("-")[0], "gemini-x")
    }


def as_called(name, invoiced):
    """Return the invoice in the order of the reports: helpers for streams are called first, a dump calls nothing."""
    if name == "gemini-reports":
        return [invoiced[0], *invoiced]
    return [*invoiced[1:], invoiced[0]]
