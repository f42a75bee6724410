"""The list of tokens: the cards of those that need a hand, and what is shown of each."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.projects.models import Token
from enforcement.model import tokens
from tests.controlplane.web.kit.test_tags import cells
from tests.factories import LimitFactory, MembershipFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db

TOKENS = "/admin/projects/token/"
SOON = timedelta(days=3)


def cards(response) -> dict[str, int]:
    return {card.title: card.count for card in response.context["hygiene"]}


def listed(client, query: str) -> list[str]:
    return sorted(token.name for token in client.get(TOKENS + query).context["cl"].result_list)


def used_before(token, ago) -> Token:
    at = timezone.now() - ago
    Token.objects.filter(pk=token.pk).update(last_used_at=at, last_used_on=at.date())
    return token


@pytest.fixture
def zoo(db):
    """One live token for each card, one that no card counts, and ended ones, which need no hand."""
    now, policy = timezone.now(), LimitFactory().policy
    project = ProjectFactory(policy=policy)
    fine = {"project": project, "policy": policy, "expires_at": now + timedelta(days=60)}
    old = {**fine, "created_at": now - timedelta(days=200)}
    used_before(TokenFactory(name="fine", **old), timedelta(days=89))
    TokenFactory(name="forever", **{**fine, "expires_at": None})
    TokenFactory(name="ending", **{**fine, "expires_at": now + SOON})
    TokenFactory(name="never-used", **old)
    used_before(TokenFactory(name="long-ago", **old), timedelta(days=92))
    TokenFactory(name="free", **{**fine, "policy": PolicyFactory(), "project": ProjectFactory(policy=PolicyFactory())})
    TokenFactory(name="bare", **{**fine, "policy": None, "project": ProjectFactory()})
    TokenFactory(name="by-project", **{**fine, "policy": None})
    TokenFactory(name="ended", **{**old, "expires_at": None, "policy": None}, revoked=True)
    return project


def test_each_card_counts_what_its_link_lists(as_operator, zoo):
    """Only live tokens, and new ones have had no time to be used."""
    response = as_operator.get(TOKENS)

    found = {card.title: (card.count, listed(as_operator, card.query)) for card in response.context["hygiene"]}
    assert found == {
        "Never expire": (1, ["forever"]),
        "Not used for 90 days": (2, ["long-ago", "never-used"]),
        "No limit applies": (2, ["bare", "free"]),
        "Expire within 7 days": (1, ["ending"]),
    }


def test_with_a_global_limit_some_limit_applies_to_every_token(as_operator, zoo):
    """A global policy without limits is none."""
    policy = PolicyFactory(everywhere=True)
    before = cards(as_operator.get(TOKENS))
    LimitFactory(policy=policy)

    assert (before["No limit applies"], cards(as_operator.get(TOKENS))["No limit applies"]) == (2, 0)
    assert listed(as_operator, "?hygiene=unlimited") == []


def test_a_member_counts_the_tokens_of_the_own_projects(client, zoo):
    """Also when the address names another project."""
    member = MembershipFactory(project=zoo)
    client.force_login(member.user)
    stranger = MembershipFactory()

    assert list(cards(client.get(TOKENS)).values()) == [1, 2, 0, 1]
    client.force_login(stranger.user)
    assert set(cards(client.get(TOKENS)).values()) == {0}
    assert set(cards(client.get(f"{TOKENS}?project__id__exact={zoo.pk}")).values()) == {0}
    assert listed(client, f"?hygiene=unused&project__id__exact={zoo.pk}") == []


def test_the_cards_of_a_project_stay_in_it(as_operator, zoo):
    """The list is narrowed to it, and so are the numbers above it."""
    response = as_operator.get(f"{TOKENS}?project__id__exact={zoo.pk}")

    assert cards(response)["No limit applies"] == 0
    assert all(card.query.endswith(f"&project__id__exact={zoo.pk}") for card in response.context["hygiene"])
    assert set(cards(as_operator.get(f"{TOKENS}?project__id__exact=%27")).values()) == {0}


def test_the_cards_ask_as_often_for_more_tokens(as_operator, zoo):
    """Each card is one query, which counts no further than 1,000."""

    def asked() -> list[str]:
        with CaptureQueriesContext(connection) as found:
            as_operator.get(TOKENS)
        return [one["sql"] for one in found if "projects_token" in one["sql"] and " LIMIT 1001" in one["sql"]]

    few = asked()
    TokenFactory.create_batch(30, project=zoo)

    assert len(asked()) == len(few)
    assert len(few) >= 4


def test_a_secret_is_shown_by_both_ends(as_operator):
    """An older token has none, and says so. Both ends leave more than 200 bits to guess."""
    token, old = TokenFactory(name="b"), TokenFactory(name="a")
    Token.objects.filter(pk=old.pk).update(secret_end="")

    page = as_operator.get(f"{TOKENS}?o=1")

    assert cells(page, "shown_prefix") == [f"{old.prefix}… –", f"{token.prefix}…{token.secret[-4:]}"]
    assert token.secret not in page.content.decode()
    known = (tokens.PREFIX_LENGTH - len("sg_live_") + tokens.END_LENGTH) * 6
    assert 256 - known > 200


def test_a_new_secret_has_its_own_end():
    """Also that of a key."""
    token, key = Token(), ManagementKey()

    assert (token.set_secret("live")[-4:], key.set_secret("mgmt")[-4:]) == (token.secret_end, key.secret_end)


def test_the_owner_is_the_label_of_that_name(as_operator):
    """It leads to the other tokens of the same owner."""
    TokenFactory(name="a", labels={"owner": "ann & co", "team": "red"}), TokenFactory(name="b")

    page = as_operator.get(f"{TOKENS}?o=1")

    assert cells(page, "owner") == ["ann &amp; co", "—"]
    assert "?label=owner%3Dann+%26+co" in page.content.decode()


def test_an_unknown_choice_finds_nothing(as_operator):
    """An action on all rows of the list would otherwise be on every token."""
    TokenFactory()

    assert listed(as_operator, "?hygiene=nothing") == []
