"""Each template of the first steps, as sentences and through a real limiter."""

from contextlib import ExitStack

import pytest

from controlplane.changes.change.transaction import Actor, change
from controlplane.changes.words.describe import amount, sentence
from controlplane.objects.policies.models import Policy
from controlplane.objects.prices.models import ModelPrice
from controlplane.web.overview.actions import create_first_project, create_first_token, use_template
from controlplane.web.overview.catalogue import templates
from enforcement import Denied, Limiter
from tests.factories import ModelPriceFactory

ANN = Actor("ann", "admin")

# For each template the amounts of the first policy, and the attributes of a request and the number that passes.
CASES = {
    "public-api": (["100 requests per minute", "10,000 requests per calendar day"], {}, 100),
    "login-protection": (
        ["20 requests per 15 minutes", "5 requests per 15 minutes"],
        {"method": "POST", "path": "/login", "ip": "192.0.2.1", "user": "bob"},
        5,
    ),
    "partner-tiers": (["20 requests per minute", "1,000 requests per calendar month"], {}, 20),
}


def test_there_are_five():
    """Those of the page, each with a title and a sentence."""
    assert list(templates()) == ["public-api", "llm-budget", "login-protection", "partner-tiers", "uploads"]
    assert all(template.title and template.detail for template in templates().values())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.django_db(transaction=True)
def test_a_template_denies_what_it_promises_to(name, store):
    """The policies are published, the first token has the first of them, and the next request is denied."""
    amounts, attributes, quota = CASES[name]
    with change(actor=ANN) as tx:
        project = create_first_project(tx)
        policy, *_ = use_template(tx, templates()[name], project)
        token, secret = create_first_token(tx, project)

    assert [amount(limit.as_value()) for limit in policy.limits.all()] == amounts
    assert token.policy == policy
    with Limiter(store.url, timeout=1.0) as limiter:
        assert limiter.check(secret, costs=quota, attributes=attributes).allowed
        assert not limiter.check(secret, attributes=attributes).allowed


@pytest.mark.django_db
def test_the_budget_counts_requests_llm_tokens_and_money():
    """A model without a price, and a request that no meter reads, are denied, which is the safe default."""
    own = ModelPriceFactory()
    with change(actor=ANN) as tx:
        (policy,) = use_template(tx, templates()["llm-budget"], create_first_project(tx))

    assert [sentence(limit.as_value()) for limit in policy.limits.all()] == [
        "60 requests per minute for each token or project, counted in a sliding window",
        "60,000 tokens per minute for each token or project, refilled at a steady rate, with bursts of up to 60,000",
        "50.00 USD per calendar month for each token or project, in the time zone UTC",
    ]
    assert list(ModelPrice.objects.all()) == [own]  # the catalogue is taken only if there is no price at all


@pytest.mark.django_db(transaction=True)
def test_uploads_are_few_at_the_same_time(store):
    """Three are admitted, and the fourth has to wait."""
    with change(actor=ANN) as tx:
        project = create_first_project(tx)
        use_template(tx, templates()["uploads"], project)
        _, secret = create_first_token(tx, project)

    attributes = {"method": "POST", "path": "/upload"}
    with Limiter(store.url, timeout=1.0) as limiter, ExitStack() as running:
        for _ in range(3):
            running.enter_context(limiter.admit(secret, attributes=attributes))
        with pytest.raises(Denied, match="at-once"), limiter.admit(secret, attributes=attributes):
            pass


@pytest.mark.django_db
def test_the_login_policy_is_for_requests_without_a_token_too():
    """Nobody has a token before the log-in."""
    with change(actor=ANN) as tx:
        project = create_first_project(tx)
        use_template(tx, templates()["login-protection"], project)

    assert project.anonymous_policy == project.token_policy == Policy.objects.get()
