"""What the form of a policy is told while somebody types."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Token
from controlplane.traffic.usage.models import DeniedRequest, UsageRow
from tests.factories import (
    DeniedRequestFactory,
    LimitFactory,
    MembershipFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UsageRowFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

URL = "/admin/policies/policy/advice/"
USUAL = {
    "algorithm": "sliding_window",
    "unit": "requests",
    "window_seconds": "1 minute",
    "mode": "enforce",
    "consistency": "strict",
    "on_store_failure": "local",
}


def typed(*rows: dict, **rest) -> dict:
    """The fields of a form with these limits."""
    fields = {f"limits-{i}-{name}": value for i, row in enumerate(rows) for name, value in {**USUAL, **row}.items()}
    return {"limits-TOTAL_FORMS": len(rows), **fields, **rest}


@pytest.fixture
def advise(admin_client):
    """``ask(row, ..., policy=pk)``: what an operator's form is told."""
    return lambda *rows, **rest: admin_client.post(URL, typed(*rows, **rest)).json()


def test_every_row_is_told_what_it_means(advise):
    """By the rules that save it; a row that is about to be removed, and one that is wrong, are no trouble."""
    told = advise({"name": "a", "quota": 100}, {"name": "b", "quota": 1, "DELETE": "on"}, {"name": "c", "quota": "x"})

    assert set(told["limits"]) == {"limits-0", "limits-2"}
    assert told["limits"]["limits-0"]["sentence"].startswith("100 requests per minute for each token or project")
    assert told["limits"]["limits-2"]["errors"] == {"quota": ["Must be an integer such as 1,200, got 'x'."]}


def test_a_path_without_a_slash_is_an_error(advise):
    """It would match nothing."""
    told = advise({"name": "a", "quota": 1, "match_path": "v1/*"})

    assert "Must begin with / or a wildcard" in told["limits"]["limits-0"]["errors"]["match_path"][0]


def test_warnings_stand_at_the_field_that_causes_them(advise):
    """They come with the sentence, because they never block."""
    told = advise({"name": "a", "quota": 100}, {"name": "b", "quota": 50, "window_seconds": "1 hour"})

    (warning,) = told["limits"]["limits-0"]["warnings"]
    assert (warning["field"], warning["kind"]) == ("quota", "warn")
    assert told["limits"]["limits-0"]["sentence"]


def test_a_sample_request_is_judged_by_the_limits_as_they_are_typed(advise):
    """Nothing is saved for it, and nothing is charged."""
    told = advise(
        {"name": "all", "quota": 9},
        {"name": "images", "quota": 1, "match_path": "/v1/images/*"},
        try_path="/v1/chat",
        try_method="POST",
    )

    assert told["request"]["sentence"] == "1 of 2 limits matches."
    assert [row["matches"] for row in told["request"]["limits"]] == [True, False]
    assert not Policy.objects.exists()


@pytest.mark.parametrize("cost", ["", "x", "-1", "9" * 40])
def test_a_cost_that_is_none_counts_as_one(advise, cost):
    """Bad input of the sample is no error of the policy."""
    told = advise({"name": "all", "quota": 9}, try_path="/", try_cost=cost)

    assert told["request"]["sentence"] == "1 of 1 limit matches."


def test_a_hopeless_sample_is_said(advise):
    """It is denied whenever it comes."""
    told = advise({"name": "all", "quota": 9}, try_path="/", try_cost="10")

    assert told["request"]["sentence"] == "1 of 1 limit matches. The request is always denied by all."


@pytest.fixture
def policy_in_use() -> Policy:
    """A policy whose limit for images is never met, and whose other limit counts."""
    policy = PolicyFactory()
    LimitFactory(policy=policy, name="all")
    LimitFactory(policy=policy, name="images", match_path="/v1/images/*", quota=7)
    Policy.objects.update(updated_at=timezone.now() - timedelta(days=30))
    token = TokenFactory(policy=policy)
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    ids = {"project_id": token.project_id, "token_id": token.pk, "policy_id": policy.pk}
    UsageRowFactory(period="hour", at=hour, limit_name="all", **ids)
    return policy


def images(policy: Policy, **changed) -> dict:
    limit = policy.limits.get(name="images")
    return {"id": limit.pk, "name": "images", "quota": 7, "match_path": "/v1/images/*", **changed}


def told_of_images(ask, policy: Policy, **changed) -> list[str]:
    told = ask(images(policy, **changed), policy=policy.pk)
    return [warning["text"] for warning in told["limits"]["limits-0"]["warnings"]]


def test_a_limit_that_nothing_has_met_is_said(advise, policy_in_use):
    """Since when, which is at most a week."""
    (text,) = told_of_images(advise, policy_in_use)

    assert text.startswith("No request has matched since ")


def test_without_any_traffic_nothing_is_said(advise, policy_in_use):
    """No data is no warning."""
    UsageRow.objects.all().delete()

    assert told_of_images(advise, policy_in_use) == []


@pytest.fixture
def denied():
    """``denied(policy, path="/v1/image")``: three sampled denials of now in the project that uses the policy."""

    def deny(policy: Policy, **attributes: str) -> None:
        project = Token.objects.get(policy=policy).project_id
        for _ in range(3):
            DeniedRequestFactory(at=timezone.now(), project_id=project, attributes=attributes)

    return deny


NONE = "None of the 3 sampled denials of the last 7 days that tell it had such a"
UNKNOWN = (
    "Not known whether requests have such a {}: no sampled denial of the last 7 days tells it, and passed requests"
)
PASSED = "Passed requests are not recorded."


def test_a_new_path_is_compared_with_those_that_were_denied(advise, policy_in_use, denied):
    """A slip of the pen is found by paths that look like it."""
    denied(policy_in_use, path="/v1/image")
    denied(policy_in_use, model="gpt-5")

    text = f"{NONE} path. Similar ones: /v1/image."
    assert told_of_images(advise, policy_in_use, match_path="/v1/imagse/*") == [text]
    assert told_of_images(advise, policy_in_use, match_path="/speech") == [f"{NONE} path. {PASSED}"]
    assert told_of_images(advise, policy_in_use, match_path="/v1/imag*") == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"match_methods": "PUT"}, f"{NONE} method. {PASSED}"),
        ({"match_methods": "PUT, POST"}, None),
        ({"match_attributes": "model = claude-*"}, f"{NONE} model. {PASSED}"),
        ({"match_attributes": "model = gpt-*"}, None),
        ({"match_attributes": "user = x"}, None),
        ({"match_attributes": "header.x-taem = red"}, f"{UNKNOWN.format('header.x-taem')} are not recorded."),
    ],
)
def test_methods_and_attributes_are_compared_as_well(advise, policy_in_use, denied, rule, text):
    """By the rules that enforce. Of a long value only the beginning is kept, so it may fit."""
    denied(policy_in_use, method="POST", model="gpt-5", user="a" * 64 + "\N{HORIZONTAL ELLIPSIS}")

    found = told_of_images(advise, policy_in_use, match_path="", **rule)

    assert [one.removesuffix(" A day in shadow shows it.") for one in found] == ([text] if text else [])


def test_one_denial_is_one(advise, policy_in_use):
    """In the singular."""
    project = Token.objects.get(policy=policy_in_use).project_id
    DeniedRequestFactory(at=timezone.now(), project_id=project, attributes={"path": "/v1/chat"})

    text = f"The only sampled denial of the last 7 days that tells it had no such path. {PASSED}"
    assert told_of_images(advise, policy_in_use, match_path="/speech") == [text]


def test_what_nothing_tells_is_said_to_be_unknown(advise, policy_in_use):
    """It is no warning, because such requests may come at any time."""
    told = advise(images(policy_in_use, match_path="/v1/speech"), policy=policy_in_use.pk)

    (note,) = told["limits"]["limits-0"]["warnings"]
    assert (note["field"], note["kind"]) == ("match_path", "info")
    assert note["text"].startswith(UNKNOWN.format("path"))


def test_what_is_old_or_of_others_is_no_sign(advise, policy_in_use, denied):
    """The sample is that of the last 7 days, of the projects that the user may see."""
    denied(policy_in_use, path="/v1/speech")
    DeniedRequest.objects.update(at=timezone.now() - timedelta(days=8))

    (text,) = told_of_images(advise, policy_in_use, match_path="/v1/speech")

    assert text.startswith(UNKNOWN.format("path"))


def test_a_label_that_no_token_has_is_said(advise, policy_in_use):
    """Labels are known, so nothing is left open."""
    Token.objects.update(labels={"team": "red"})

    wrong = {"match_path": "", "match_attributes": "label.taem = red", "partition_by": "label.tier"}
    right = {"match_path": "", "match_attributes": "label.team = red", "partition_by": "label.team"}
    assert told_of_images(advise, policy_in_use, **wrong) == [
        "No token has the label taem.",
        "No token has the label tier.",
    ]
    assert told_of_images(advise, policy_in_use, **right) == []


@pytest.mark.parametrize(
    ("role", "existing", "status"),
    [(None, False, 403), ("viewer", False, 403), ("viewer", True, 403), ("editor", False, 200), ("editor", True, 200)],
)
def test_the_advice_asks_for_the_role_of_the_form(client, role, existing, status):
    """Whoever may not save the limit needs no advice on it."""
    project = ProjectFactory(slug="mine")
    policy = PolicyFactory(slug="chat", project=project)
    client.force_login(MembershipFactory(project=project, role=role).user if role else UserFactory())

    response = client.post(URL, typed({"name": "m", "quota": 1}, policy=policy.pk if existing else ""))

    assert response.status_code == status


def test_a_policy_of_another_project_is_not_there(client):
    """Neither it nor its traffic."""
    client.force_login(MembershipFactory(role="editor").user)

    response = client.post(URL, typed({"name": "m", "quota": 1}, policy=PolicyFactory(project=ProjectFactory()).pk))

    assert response.status_code == 404


def test_only_posted_forms_are_answered(admin_client):
    """The form is too long for an address."""
    assert admin_client.get(URL).status_code == 405


def test_the_number_of_rows_is_bounded(advise):
    """As the form bounds it."""
    assert advise(**{"limits-TOTAL_FORMS": "9" * 15})["limits"] == {}
