"""Labels of tokens and the policy of new tokens in the admin."""

import html

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing import publisher
from controlplane.traffic.usage.models import MeteredRow
from controlplane.web.kit.forms import version_of
from enforcement import Limiter
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory, UsageRowFactory

pytestmark = pytest.mark.django_db(transaction=True)

TOKENS, PROJECTS = "/admin/projects/token/", "/admin/projects/project/"


def add(as_ann, project, labels="", **fields):
    """Send the form that creates a token."""
    return as_ann.post(f"{TOKENS}add/", {"project": project.pk, "name": "ci", "labels": labels, **fields}, follow=True)


def shown(response):
    return html.unescape(response.content.decode())


def rows(as_ann, path):
    """Return the primary keys of the rows in a list."""
    return {row.pk for row in as_ann.get(path).context["cl"].result_list}


def test_labels_are_typed_one_on_each_line(as_ann, store):
    """And shown the same way, audited by name, and changed with the others kept."""
    add(as_ann, ProjectFactory(), "team = red\r\n\r\n owner=Ann = Lee | co ")
    token = Token.objects.get()
    assert token.labels == {"team": "red", "owner": "Ann = Lee | co"}
    page = f"{TOKENS}{token.pk}/change/"
    assert "team = red\nowner = Ann = Lee | co</textarea>" in shown(as_ann.get(page))

    fields = {"name": "ci", "seen_version": version_of(token), "labels": "team = blue\nowner = Ann = Lee | co"}
    as_ann.post(page, fields)
    entry = AuditEntry.objects.get(action="token.update")
    assert "Label team" in shown(as_ann.get(f"/admin/policies/auditentry/{entry.pk}/change/"))
    assert Token.objects.get().labels == {"team": "blue", "owner": "Ann = Lee | co"}


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ("team", 'Each line must hold one label such as "team = red"'),
        ("team =", 'Each line must hold one label such as "team = red"'),
        ("team = red\nteam = blue", "each name once"),
        ("Team = red", "A name must be 1 to 58 of a-z 0-9 . _ - and begin with a letter, got 'Team'."),
        (f"team = {'x' * 129}", "The value of team must have 1 to 128 characters, got 129."),
        ("\n".join(f"n{i} = v" for i in range(17)), "Must be at most 16, got 17."),
    ],
)
def test_what_is_no_label_is_refused_at_the_field(as_ann, store, labels, error):
    """By the rule of the library, once, and nothing is saved."""
    errors = add(as_ann, ProjectFactory(), labels).context["adminform"].form.errors

    assert list(errors) == ["labels"]
    assert [error in text for text in errors["labels"]] == [True]
    assert not Token.objects.exists()


def test_lists_and_the_palette_find_tokens_by_label(as_ann, store):
    """By name and value, by name, and by a part of a text."""
    red = TokenFactory(labels={"team": "red", "a__b": "Müller"})
    blue = TokenFactory(labels={"team": "blue"})
    TokenFactory()

    assert rows(as_ann, f"{TOKENS}?label=team%3Dred") == rows(as_ann, f"{TOKENS}?label=a__b") == {red.pk}
    assert rows(as_ann, f"{TOKENS}?label=team") == {red.pk, blue.pk}
    assert rows(as_ann, f"{TOKENS}?q=team%3Dred") == rows(as_ann, f"{TOKENS}?q=M%C3%BCll") == {red.pk}
    assert rows(as_ann, f"{TOKENS}?q=team%3Dre") == set()
    assert '<a class="sg-badge" href="/admin/projects/token/?label=team%3Dred">team=red<' in shown(as_ann.get(TOKENS))
    palette = shown(as_ann.get("/admin/search/?s=team%3Dred&extended=1"))
    assert red.name in palette
    assert blue.name not in palette


def test_usage_is_filtered_by_the_label_of_its_tokens(as_ann, store):
    """In the list and in the file of the same rows."""
    red, blue = TokenFactory(labels={"team": "red"}), TokenFactory(labels={"team": "blue"})
    row, _ = (UsageRowFactory(token_id=token.pk, period="hour", limit_name="") for token in (red, blue))

    assert rows(as_ann, "/admin/usage/usagerow/?label=team%3Dred") == {row.pk}
    assert blue.pk not in as_ann.get("/admin/usage/usagerow/export.csv?label=team%3Dred").getvalue().decode()


def test_metered_usage_is_filtered_by_the_label_of_its_tokens(as_ann, store):
    """As other usage is."""
    red, blue = TokenFactory(labels={"team": "red"}), TokenFactory(labels={"team": "blue"})
    at = timezone.now().replace(minute=0, second=0, microsecond=0)
    key = {"period": "hour", "at": at, "settled_as": "exact", "model": "gpt-x"}
    row, _ = (MeteredRow.objects.create(**key, project_id=it.project_id, token_id=it.pk) for it in (red, blue))

    assert rows(as_ann, "/admin/usage/meteredrow/?label=team%3Dred") == {row.pk}
    assert blue.pk not in as_ann.get("/admin/usage/meteredrow/export.csv?label=team%3Dred").getvalue().decode()


@pytest.mark.parametrize("value", ["=red", "Team=red", "team=", "%3D"])
@pytest.mark.parametrize("path", [TOKENS, "/admin/usage/usagerow/"])
def test_a_filter_that_names_no_label_shows_no_row_and_an_error(as_ann, path, value):
    """It would otherwise show those of everybody."""
    UsageRowFactory(token_id=TokenFactory(labels={"team": "red"}).pk, period="hour", limit_name="")

    assert rows(as_ann, f"{path}?label={value}") == set()
    assert "Must be a label such as team=red: " in shown(as_ann.get(f"{path}?label={value}"))


def test_a_new_token_gets_the_policy_of_new_tokens_of_its_project(as_ann, store, told):
    """If none is chosen. The page says so, and the policy's page says who uses it."""
    default, other = PolicyFactory(slug="starter"), PolicyFactory()
    project = ProjectFactory(slug="shop")
    fields = {"slug": "shop", "name": "S", "active": "on", "partition_cap": 9, "time_zone": "UTC"}
    fields |= {"token_policy": default.pk, "seen_version": version_of(project)}
    as_ann.post(f"{PROJECTS}{project.pk}/change/", fields)
    assert Project.objects.get().token_policy == default

    messages = told(add(as_ann, project))
    add(as_ann, project, policy=other.pk)
    assert [token.policy for token in Token.objects.order_by("created_at")] == [default, other]
    (message,) = [one for one in messages if "It has the policy of new tokens of shop, which is starter." in one]
    assert message.index("was created.") < message.index("It has the policy")
    assert "new tokens of 1 project" in shown(as_ann.get(f"/admin/policies/policy/{default.pk}/change/"))
    assert as_ann.get(f"{PROJECTS}?token_policy__id__exact={default.pk}").status_code == 200


def test_a_policy_of_another_project_cannot_be_that_of_new_tokens(as_ann, store):
    """By the rule of the model."""
    project, policy = ProjectFactory(), PolicyFactory(project=ProjectFactory())
    fields = {"slug": "a", "name": "A", "active": "on", "time_zone": "UTC", "token_policy": policy.pk}
    response = as_ann.post(f"{PROJECTS}{project.pk}/change/", {**fields, "seen_version": version_of(project)})

    errors = response.context["adminform"].form.errors
    assert errors["token_policy"] == ["Must not be a policy of another project."]


def test_the_sentence_of_a_limit_names_the_label(as_ann):
    """In words, and not by the prefix of its attribute."""
    LimitFactory(quota=5, partition_by=["label.team"], match_attributes={"label.tier": "gold"})

    text = shown(as_ann.get("/admin/policies/policy/"))
    assert "5 requests per minute for each team of the token where tier of the token is gold" in text


def test_the_pages_in_a_browser(walker, store):
    """Form, list with filter, and live counters of a label, in both lights and on a narrow screen."""
    policy = PolicyFactory(slug="teams")
    LimitFactory(policy=policy, name="per-team", quota=5, window_seconds=86_400, partition_by=["label.team"])
    LimitFactory(policy=policy, name="per-ip", quota=5, partition_by=["label.team", "ip"])
    project = ProjectFactory(slug="shop", policy=policy)
    token = TokenFactory(project=project, labels={"team": "red", "owner": "ann"})
    TokenFactory(project=project, labels={"team": "blue"})
    publisher.publish_all()
    with Limiter(store.url, timeout=1.0) as limiter:
        limiter.check(token.secret)
    walker.enter("ann")

    walker.open(f"{TOKENS}{token.pk}/change/")
    walker.reads("1 of 5 requests (20 %)")
    walker.reads("label.team=red")
    walker.look("token", elsewhere=True)
    walker.open(f"{TOKENS}?label=team%3Dred")
    walker.reads("team=red")
    walker.look("tokens", elsewhere=True)
    walker.open(f"{TOKENS}?label=Team")
    walker.page.get_by_role("button", name="Filters").first.click()
    walker.reads("Must be a label such as team=red: ")
    walker.look("wrong-label")
    walker.open(f"{PROJECTS}{project.pk}/change/")
    walker.reads("A counter for each value of the label.")
    walker.look("project", elsewhere=True)
    walker.open("/admin/usage/usagerow/")
    walker.look("usage", elsewhere=True)
    assert not walker.faults
