"""Other labels of tokens are reviewed where a limit looks at them."""

import pytest
from django.utils import timezone

from controlplane.objects.projects.models import Token
from controlplane.releases.review.labelling import labels_review
from controlplane.releases.review.reviews import with_preview
from controlplane.web.kit.forms import version_of
from tests.controlplane.web.kit.reviews import enforce
from tests.controlplane.web.kit.test_forms import TOKENS
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db
RED, BLUE = {"team": "red"}, {"team": "blue"}


@pytest.fixture
def policy():
    """One limit for the red team, one for each team, and one for everybody."""
    policy = PolicyFactory(slug="free")
    LimitFactory(policy=policy, name="red", quota=10, match_attributes={"label.team": "red"}, position=0)
    LimitFactory(policy=policy, name="by-team", quota=50, partition_by=["label.team"], position=1)
    LimitFactory(policy=policy, name="all", quota=20, position=2)
    return policy


@pytest.fixture
def token(policy):
    return TokenFactory(project=ProjectFactory(slug="chat"), policy=policy, name="web")


def effects(review):
    return [(one.name, one.effect) for one in review.changes]


def previewed(review):
    return with_preview(review, timezone.now(), others=False).preview


def test_a_limit_that_applies_by_a_label_is_replayed(token, sent):
    """A token has its counters alone, so its requests tell what the limits of its policy would have denied."""
    sent(token, 30, minutes_ago=30, now=timezone.now())

    review = labels_review([(token, {}, RED)], timezone.now())

    assert effects(review) == [("free/red", "new"), ("free/by-team", "new")]
    found = previewed(review)
    assert (found.denied.likely, found.unknown, review.tokens) == (20, [], 1)


def test_a_limit_that_does_not_apply_any_more_denies_nothing(token, sent):
    """The others still do."""
    sent(token, 30, minutes_ago=30, now=timezone.now())

    review = labels_review([(token, RED, {})], timezone.now())

    assert effects(review) == [("free/red", "removed"), ("free/by-team", "removed")]
    assert (review.needs_reason, previewed(review).denied.likely) == (False, 10)


def test_another_value_is_another_counter(token):
    """The words say which."""
    (red, by_team) = labels_review([(token, RED, BLUE)], timezone.now()).changes

    assert (red.effect, red.becomes) == ("removed", "not there")
    assert (by_team.effect, by_team.was, by_team.becomes) == ("changed", "counts team = red", "counts team = blue")


def test_labels_that_no_limit_looks_at_change_nothing(token):
    """Nor do those of a token that has ended."""
    ended = TokenFactory(policy=token.policy, revoked=True)

    for one, before, after in ((token, {}, {"tier": "gold"}), (token, RED, RED), (ended, {}, RED)):
        assert not labels_review([(one, before, after)], timezone.now()).is_needed


def test_a_shared_counter_cannot_be_replayed(policy):
    """The limit of a project counts all tokens of a team together."""
    token = TokenFactory(project=ProjectFactory(policy=policy))

    review = labels_review([(token, {}, RED)], timezone.now())

    found = previewed(review)
    assert (found.has_data, [one.limit for one in found.unknown]) == (False, ["free/red", "free/by-team"])


def test_a_token_gets_a_label_after_its_review(as_ann, token):
    """By its form."""
    fields = {"name": "web", "policy": token.policy_id, "labels": "team = red", "seen_version": version_of(token)}

    review = as_ann.post(f"{TOKENS}{token.pk}/change/", fields)

    assert "Other limits apply to web, by other labels" in review.content.decode()
    token.refresh_from_db()
    assert token.labels == {}
    enforce(as_ann, review)
    token.refresh_from_db()
    assert token.labels == RED


def test_many_tokens_get_a_label_after_their_review(as_ann, token):
    """The page says of how many a limit thinks differently. Nothing of it can be replayed."""
    others = [TokenFactory(policy=token.policy, labels=labels) for labels in (RED, BLUE)]
    chosen = {"action": "label_selected", "_selected_action": [one.pk for one in (token, *others)]}

    review = as_ann.post(TOKENS, {**chosen, "label": "team=red", "change_reason": "Teams"})

    page = review.content.decode()
    assert "Other limits apply to 2 tokens, by other labels" in page
    assert "applies to 1 of these" in page
    assert "applies to 2 of these, 1 of them with another counter" in page
    assert "No data" in page
    enforce(as_ann, review)
    assert all(one.labels == RED for one in Token.objects.all())
