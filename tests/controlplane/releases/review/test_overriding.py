"""What the review of an override says: who has which quota when, and what it would have denied."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit
from controlplane.releases.preview import words
from controlplane.releases.review.overriding import deletion_review, override_review
from controlplane.releases.review.reviews import with_preview
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


@pytest.fixture
def now():
    return timezone.now()


def effects(review):
    """Each change as its quotas, its effect and the beginning of when it holds."""
    return [(one.before.quota, one.after.quota, one.effect, one.note.partition(" ")[0]) for one in review.changes]


def previewed(review, now):
    return with_preview(review, now, others=False).preview


def test_a_lower_quota_is_judged_by_the_override_as_it_will_be(limit, token, sent, now):
    """Nothing is saved yet, and the preview has the numbers all the same."""
    sent(token, 30, minutes_ago=30, now=now)

    review = override_review(None, Override(limit=limit, token=token, quota=10), now)

    assert effects(review) == [(25, 10, "tighter", "")]
    assert review.headline == "The override of free/per-minute for the token web begins: 25 becomes 10"
    assert (review.needs_reason, review.tokens, review.projects) == (True, 1, ["chat"])
    assert previewed(review, now).denied.likely == 20


def test_an_override_that_is_replaced_or_deleted_does_not_count(limit, token, sent, now):
    """The saved row is still there when the preview is made."""
    sent(token, 70, minutes_ago=30, now=now)
    former = OverrideFactory(limit=limit, token=token, quota=60)
    changed = Override(pk=former.pk, limit=limit, token=token, quota=40)

    reviews = [override_review(former, changed, now), override_review(former, None, now)]

    assert [effects(one) for one in reviews] == [[(60, 40, "tighter", "")], [(60, 25, "tighter", "")]]
    assert [previewed(one, now).denied.likely for one in reviews] == [30, 45]


def test_an_earlier_end_takes_something_away_later(limit, token, sent, now):
    """Nothing changes before that end, and the preview judges what comes after it."""
    sent(token, 30, minutes_ago=30, now=now)
    former = OverrideFactory(limit=limit, token=token, quota=60, ends_at=now + 3 * DAY)
    changed = Override(pk=former.pk, limit=limit, token=token, quota=60, ends_at=now + DAY)

    review = override_review(former, changed, now)

    assert effects(review) == [(60, 25, "tighter", "from")]
    assert "until" in review.changes[0].note
    assert previewed(review, now).denied.likely == 5


def test_more_for_a_shorter_time_is_told_as_both(limit, token, now):
    """What is denied more comes first, because it needs the reason."""
    former = OverrideFactory(limit=limit, token=token, quota=60, ends_at=now + 3 * DAY)
    changed = Override(pk=former.pk, limit=limit, token=token, quota=90, ends_at=now + DAY)

    assert effects(override_review(former, changed, now)) == [(60, 25, "tighter", "from"), (60, 90, "looser", "until")]


def test_the_override_of_the_project_counts_where_the_token_has_none(limit, token, sent, now):
    """Without its own override, the token has what its project has, until that ends as well."""
    sent(token, 30, minutes_ago=30, now=now)
    OverrideFactory(limit=limit, token=None, project=token.project, quota=40, ends_at=now + DAY)
    former = OverrideFactory(limit=limit, token=token, quota=60)

    review = override_review(former, None, now)

    assert effects(review) == [(60, 40, "tighter", "until"), (60, 25, "tighter", "from")]
    assert previewed(review, now).denied.likely == 0


def test_an_override_of_a_project_concerns_its_tokens_without_one(limit, token, sent, now):
    """A token with an override of its own keeps that. Tokens of other projects have nothing to do with it."""
    own, other = TokenFactory(project=token.project, policy=limit.policy), TokenFactory(policy=limit.policy)
    OverrideFactory(limit=limit, token=own, quota=100)
    for one in (token, own, other):
        sent(one, 30, minutes_ago=30, now=now)

    review = override_review(None, Override(limit=limit, project=token.project, quota=10), now)

    assert (review.tokens, review.projects, effects(review)) == (1, ["chat"], [(25, 10, "tighter", "")])
    found = previewed(review, now)
    assert (found.callers, found.denied.likely, found.overrides) == (2, 20, 2)


def test_a_shared_counter_cannot_be_replayed(limit, now):
    """The token counts together with the others of its project, and whose requests came first is not recorded."""
    token = TokenFactory(project=ProjectFactory(slug="chat", policy=limit.policy), name="web")

    review = override_review(None, Override(limit=limit, token=token, quota=10), now)

    found = previewed(review, now)
    assert (found.has_data, [one.limit for one in found.unknown]) == (False, ["free/per-minute"])
    assert "shares its counter" in found.unknown[0].reason


def test_an_override_that_moves_is_told_of_both_holders(limit, token, sent, now):
    """One loses it, and the other one gets it."""
    other = TokenFactory(project=token.project, policy=limit.policy)
    for one in (token, other):
        sent(one, 70, minutes_ago=30, now=now)
    former = OverrideFactory(limit=limit, token=token, quota=60)
    changed = Override(pk=former.pk, limit=limit, token=other, quota=60)

    review = override_review(former, changed, now)

    assert effects(review) == [(60, 25, "tighter", ""), (25, 60, "looser", "")]
    assert previewed(review, now).denied.likely == 45 + 10


def test_overrides_of_several_policies_are_told_and_one_policy_is_replayed(limit, token, sent, now):
    """The page says which one is not."""
    sent(token, 30, minutes_ago=30, now=now)
    paid = LimitFactory(policy=PolicyFactory(slug="paid"), name="per-hour", quota=900)
    rows = [
        OverrideFactory(limit=limit, token=token, quota=60),
        OverrideFactory(limit=paid, token=TokenFactory(policy=paid.policy), quota=500),
    ]

    review = deletion_review(rows, now)

    assert review.headline == "2 overrides are deleted"
    assert effects(review) == [(60, 25, "tighter", ""), (500, 900, "looser", "")]
    found = previewed(review, now)
    assert (found.denied.likely, [one.limit for one in found.unknown]) == (5, ["paid"])


@pytest.mark.parametrize(
    ("quota", "ends_in", "needs_reason"), [(60, None, False), (60, DAY, False), (25, None, False), (24, DAY, True)]
)
def test_only_what_denies_more_needs_a_reason(limit, token, now, quota, ends_in, needs_reason):
    """An override that gives more until an end takes nothing away, because the limit was there before."""
    override = Override(limit=limit, token=token, quota=quota, ends_at=ends_in and now + ends_in)

    review = override_review(None, override, now)

    assert (review.needs_reason, review.is_light, review.is_needed) == (needs_reason, not needs_reason, quota != 25)


def test_nobody_feels_an_override_of_a_token_that_has_ended(limit, now):
    """So it needs no review."""
    token = TokenFactory(policy=limit.policy, revoked=True)

    assert not override_review(None, Override(limit=limit, token=token, quota=10), now).is_needed


def test_a_burst_of_an_earlier_algorithm_leaves_the_quota(limit, token, sent, now):
    """Enforcers take the quota of such an override, so the preview does."""
    sent(token, 30, minutes_ago=30, now=now)
    OverrideFactory(limit=limit, token=token, quota=10)
    Override.objects.update(burst=50)

    assert effects(override_review(Override.objects.get(), None, now)) == [(10, 25, "looser", "")]


def test_a_limit_in_shadow_denies_nothing_with_any_override(limit, token, sent, now):
    """So the change needs no review, and a dry run says that nothing would be limited."""
    sent(token, 30, minutes_ago=30, now=now)
    Limit.objects.update(mode="shadow")

    review = override_review(None, Override(limit=Limit.objects.get(), token=token, quota=10), now)

    assert (effects(review), review.is_needed) == ([(25, 10, "changed, in shadow", "")], False)
    assert "No limit denies anything" in words.sentence(previewed(review, now))
