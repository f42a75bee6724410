"""Lists, forms and their words: what a search finds, what a page says when it finds nothing, and each error once."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib import admin
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Token
from controlplane.web.kit.forms import version_of
from controlplane.web.kit.menu import navigation
from controlplane.web.kit.palette import WORDS
from controlplane.web.kit.site import change_url, instant
from controlplane.web.pages.policies.limit_form import LimitForm
from enforcement.model.metered import METERED_UNITS, MONEY
from tests.controlplane.pages import text_of, words
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    MembershipFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
TOKENS = "/admin/projects/token/"
AUTOCOMPLETE = "/admin/autocomplete/?app_label=policies&model_name=override&field_name=limit&term="


def path_of(response) -> str:
    """The path at the top of a page, in words."""
    heading, *_ = re.findall(r"<h1.*?</h1>", response.content.decode(), flags=re.S)
    return words(heading).replace("chevron_right", ">")


@pytest.mark.parametrize("term", ["chat-free/per-day", "chat-free/per-d", "chat-free", "chat-free per-d", "per-day"])
def test_a_limit_is_found_by_the_name_that_is_shown(as_ann, term):
    """The box of the override's form shows "policy/limit", and finds it by that."""
    limit = LimitFactory(policy__slug="chat-free", name="per-day")
    LimitFactory(policy__slug="other", name="per-week")

    found = as_ann.get(AUTOCOMPLETE + term).json()["results"]

    assert found == [{"id": limit.pk, "text": "chat-free/per-day"}]


def test_an_override_is_found_by_the_name_of_its_limit(as_ann):
    """As its list shows it."""
    OverrideFactory(limit=LimitFactory(policy__slug="chat-free", name="per-day"), reason="a launch")
    OverrideFactory(reason="another")

    page = text_of(as_ann.get("/admin/policies/override/?q=chat-free/per-day"))

    assert "a launch" in page
    assert "another" not in page


@pytest.mark.parametrize("factory", [TokenFactory, ManagementKeyFactory])
def test_a_secret_leads_to_its_owner(as_ann, caplog, factory):
    """The digest finds it; the secret is in no address and no log line of the answer."""
    row = factory()
    factory()

    response = as_ann.post(f"{TOKENS}by-secret/", {"secret": f" {row.secret} "})

    assert response.url.replace("_5F", "_") == f"/admin/projects/{row._meta.model_name}/{row.pk}/change/"
    assert row.secret not in caplog.text


def test_a_secret_in_an_address_is_taken_out_of_it(as_ann):
    """Without scripts the search sends it there. The redirect keeps it out of the history and the next referer."""
    token = TokenFactory()

    response = as_ann.get(TOKENS, {"q": token.secret})

    assert (response.status_code, response.url.replace("_5F", "_")) == (302, f"{TOKENS}{token.pk}/change/")


def test_a_part_of_a_secret_finds_the_tokens_that_begin_so(as_ann):
    """20 characters of it find what 12 do."""
    token, _ = TokenFactory(), TokenFactory()

    found = as_ann.get(TOKENS, {"q": token.secret[:20]}).context["cl"].result_list

    assert list(found) == [token]


def test_a_secret_that_nobody_has_is_told_by_its_beginning(as_ann, told):
    """The message names what may be seen of it."""
    secret = Token().set_secret("live")

    response = as_ann.post(f"{TOKENS}by-secret/", {"secret": secret}, follow=True)

    assert told(response) == [f"No token or key has the secret that begins with {secret[:12]}."]
    assert secret not in response.content.decode()


def test_a_secret_leads_only_to_what_one_may_see(client):
    """A reader of tokens does not learn which key a secret belongs to."""
    member = MembershipFactory()
    key = ManagementKeyFactory(projects=[member.project])
    client.force_login(member.user)

    assert client.post(f"{TOKENS}by-secret/", {"secret": key.secret}).url == TOKENS
    assert client.get(f"{TOKENS}by-secret/").status_code == 405


def test_a_label_of_a_declared_field_is_shown(as_ann):
    """Meta.labels has no effect on such a field, so it must not name one."""
    page = text_of(as_ann.get("/admin/policies/policy/add/"))

    assert "If the store is unavailable" in page
    assert "On store failure" not in page
    assert not LimitForm.declared_fields.keys() & LimitForm.Meta.labels.keys()


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ({"days": 2, "seconds": -1}, "in 1 day 23 hours"),
        ({"days": 1, "hours": 23}, "in 1 day 23 hours"),
        ({"days": 2}, "in 2 days"),
        ({"minutes": 119}, "in 1 hour 59 minutes"),
        ({"minutes": 5}, "in 5 minutes"),
        ({"seconds": 30}, "in less than a minute"),
        ({"hours": -25}, "1 day ago"),
    ],
)
def test_time_left_is_not_cut_off(left, words):
    """Almost two days are not one day."""
    assert f">{words}<" in str(instant(NOW + timedelta(**left), NOW)).replace("\xa0", " ")


def test_a_search_without_a_hit_offers_no_first_token(as_ann):
    """There are tokens; the way on is to see them."""
    TokenFactory(revoked=True)

    searched, filtered = as_ann.get(f"{TOKENS}?q=nobody"), as_ann.get(TOKENS)

    for page in (searched, filtered):
        assert "Create the first token" not in text_of(page)
        assert re.search(r'class="sg-button sg-primary"[^>]*>Reset filters<', page.content.decode())
    Token.objects.all().delete()
    assert "Create the first token" in text_of(as_ann.get(TOKENS))


def test_a_conflict_does_not_point_to_errors_below(as_ann):
    """There are none. A wrong field still does."""
    project = ProjectFactory(slug="chat")
    url = f"/admin/projects/project/{project.pk}/change/"
    fields = {"slug": "chat", "name": "X", "active": "on", "time_zone": "UTC"}

    conflict = text_of(as_ann.post(url, {**fields, "seen_version": "old"}))
    wrong = text_of(as_ann.post(url, {**fields, "seen_version": version_of(project), "slug": "Not a slug"}))

    assert "was changed after you opened it" in conflict
    assert "Please correct" not in conflict
    assert "Please correct the error below." in wrong


def test_a_refused_login_does_not_point_to_errors_below(client, ann):
    """The message itself is all there is."""
    page = text_of(client.post("/admin/login/", {"username": "ann", "password": "wrong"}))

    assert "Please enter the correct username and password" in page
    assert "Please correct" not in page


def test_paths_keep_names_and_do_not_double(as_ann):
    """A token "web" is not "Web", and an app is not named beside its list."""
    token = TokenFactory(name="web")
    policy = PolicyFactory(slug="free")

    assert path_of(as_ann.get(f"{TOKENS}{token.pk}/change/")) == "Tokens > web"
    assert path_of(as_ann.get(f"/admin/policies/policy/{policy.pk}/change/")) == "Policies > free"
    assert path_of(as_ann.get(f"/admin/policies/policy/{policy.pk}/delete/")) == "Policies > free"
    assert path_of(as_ann.get("/admin/policies/policy/")) == "Policies"


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("projects/token", "Tokens > Add token"),
        ("policies/policy", "Policies > Add policy"),
        ("auth/user", "People > Add user"),
    ],
)
def test_a_page_that_adds_says_what_it_adds(as_ann, address, path):
    """Neither the path nor the title leaves it open."""
    response = as_ann.get(f"/admin/{address}/add/")

    assert path_of(response) == path
    assert re.search(r"<title>\s*Add ", response.content.decode())
    assert button_of(response) == path.partition(" > ")[2]


def button_of(response) -> str:
    """The text of the main button of a form."""
    return " ".join(re.search(r'name="_save"[^>]*>(.*?)</button>', response.content.decode(), re.DOTALL)[1].split())


def test_buttons_say_what_they_save_or_delete(as_ann):
    """A verb and its object."""
    url = f"/admin/policies/policy/{PolicyFactory().pk}"

    assert button_of(as_ann.get(f"{url}/change/")) == "Save policy"
    assert re.search(r">\s*Delete policy\s*</button>", as_ann.get(f"{url}/delete/").content.decode())


def test_the_form_of_a_limit_offers_the_usual_units(as_ann):
    """All that enforcement knows. Others can be typed."""
    page = as_ann.get("/admin/policies/policy/add/").content.decode()

    assert 'list="sg-units"' in page
    (offered,) = re.findall(r'<datalist id="sg-units">(.*?)</datalist>', page, re.DOTALL)
    assert set(re.findall(r'value="([^"]+)"', offered)) == {"requests", *METERED_UNITS} - {MONEY} | {"money (USD)"}


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("auth/user", "People"),
        ("axes/accessattempt", "Sign-in failures"),
        ("emergency/suspension", "Emergency"),
        ("access/membership", "Memberships"),
        ("alerts/alertevent", "Alerts"),
        ("webhooks/destination", "Destinations"),
    ],
)
def test_a_page_has_the_title_of_the_menu(as_ann, address, path):
    """If the menu leads to it. Nothing of Django's names is left."""
    assert path_of(as_ann.get(f"/admin/{address}/")) == path


def test_an_error_is_told_once(as_ann):
    """The form says that scopes are required; the model need not say it again."""
    errors = as_ann.post("/admin/projects/managementkey/add/", {"name": "ci"}).context["adminform"].form.errors

    assert errors["scopes"] == ["This field is required."]


def test_an_error_of_a_rule_and_its_constraint_is_told_once(as_ann):
    """Both say whom an override is for."""
    fields = {"limit": LimitFactory().pk, "quota": 5, "reason": "launch"}

    form = as_ann.post("/admin/policies/override/add/", fields).context["adminform"].form

    told = [text for texts in form.errors.values() for text in texts]
    assert len(told) == len(set(told))


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 3),
        ("?at_from=2026-11-25T10:00&at_to=2026-11-25T11:00", 2),
        ("?at_from=2026-11-25T11:00", 2),
        ("?at_from=&at_to=", 3),
        ("?at_from=soon", 0),
    ],
)
def test_a_list_is_filtered_by_time_in_utc(as_ann, query, count):
    """The bounds belong to it. What is no instant gives nothing, and never everything."""
    for hour in (10, 11, 12):
        AuditEntry.objects.create(at=NOW.replace(hour=hour), actor="a", channel="admin", action="a.b", object_label="x")

    response = as_ann.get(f"/admin/policies/auditentry/{query}")

    assert response.context["cl"].result_count == count
    assert ("Enter a valid date/time." in response.content.decode()) is (query == "?at_from=soon")


def shared_by_its_project():
    return ProjectFactory(
        policy=LimitFactory(policy__slug="team").policy
    ), "Only limits that it shares apply to it: team."


def free_of_limits():
    return ProjectFactory(), "No limit applies to this token, so every request with it passes."


def test_the_form_of_a_token_begins_with_the_sole_project(as_ann, rf, ann):
    """If there are several, or another one is asked for, nobody guesses."""
    first = ProjectFactory()

    def begins_with(query: str = "") -> str | None:
        request = rf.get(f"/admin/projects/token/add/{query}")
        request.user = ann
        return admin.site.get_model_admin(Token).get_changeform_initial_data(request).get("project")

    assert begins_with() == first.pk
    second = ProjectFactory()
    assert begins_with() is None
    assert begins_with(f"?project={second.pk}") == second.pk


@pytest.mark.parametrize("project_and_text", [shared_by_its_project, free_of_limits])
def test_a_token_without_a_policy_is_created_with_a_warning(as_ann, told, project_and_text):
    """Nothing else tells that nothing limits it."""
    project, text = project_and_text()

    warned = told(as_ann.post(f"{TOKENS}add/", {"project": project.pk, "name": "ci"}))
    policy = PolicyFactory()
    quiet = told(as_ann.post(f"{TOKENS}add/", {"project": project.pk, "name": "ci", "policy": policy.pk}))

    assert any(text in message for message in warned)
    assert len(quiet) == 1


def test_a_token_that_ends_is_announced_with_its_hours(as_ann):
    """On the first page, where people look for what ends soon."""
    TokenFactory(expires_at=timezone.now() + timedelta(days=2))

    assert "in 1 day 23 hours" in text_of(as_ann.get("/admin/")).replace("\xa0", " ")


def test_the_palette_shows_the_first_of_many(as_ann):
    """And leads to the list of all. The theme's search reads every row, in a time that grows with its square."""
    TokenFactory.create_batch(25, name="edge", project=ProjectFactory(slug="edges"))

    page = as_ann.get("/admin/search/?s=edge")

    titles = [result.title for result in page.context["results"]]
    assert titles[0] == "edges"
    assert (len(titles), titles[-1]) == (22, "All tokens that match")
    assert as_ann.get(page.context["results"][-1].link).context["cl"].result_count == 25


def test_the_palette_shows_what_the_user_may_see(client):
    """What belongs to the projects of a member, and what all projects share."""
    bob = MembershipFactory(project__slug="edges")
    client.force_login(bob.user)
    LimitFactory(policy__slug="edge")
    LimitFactory(policy=PolicyFactory(slug="edge-of-others", project=ProjectFactory(slug="edge-others")))
    TokenFactory(name="edge", project__slug="edge-3")

    assert [result.title for result in client.get("/admin/search/?s=edge").context["results"]] == ["edges", "edge"]


def test_every_word_of_the_palette_opens_a_page_of_the_menu(as_ann):
    """Also after an entry of the menu has got another title."""
    for word, title in WORDS.items():
        results = as_ann.get("/admin/search/", {"s": word}).context["results"]
        assert f"Open {title}" in [result.title for result in results]


@pytest.mark.parametrize(
    ("term", "titles"),
    [
        ("add policy", ["Add policy"]),
        ("new tok", ["Add token"]),
        ("create key", ["Add management key"]),
        ("open inst", ["Open Instances"]),
        ("show revisions", ["Open Revisions"]),
        ("open near", ["Open Near a limit"]),
        ("add price", ["Add price"]),
        ("explain", ["Open Explain a denial"]),
        ("undo", ["Open Revisions"]),
        ("break glass", ["Open Emergency"]),
        ("2FA", ["Open Second factor"]),
        ("kill sw", ["Open Emergency"]),
        ("rbac", ["Open People"]),
        ("gitops", ["Open Policies"]),
        ("dead letter", ["Open Destinations"]),
        ("ki", []),
        ("add", []),
        ("open nothing", []),
    ],
)
def test_the_palette_runs_commands(as_ann, term, titles):
    """A verb and the beginning of a name. A verb alone finds nothing."""
    results = as_ann.get("/admin/search/", {"s": term}).context["results"]

    assert [result.title for result in results if result.description == "Command"] == titles
    assert all(as_ann.get(result.link).status_code == 200 for result in results)


def test_the_palette_offers_what_can_be_done_with_a_row(as_ann):
    """Only actions that the page of the row offers now. The page opens the dialog, which asks."""
    token = TokenFactory(name="web", project=ProjectFactory(slug="web-shop"))
    TokenFactory(name="web-old", revoked=True)

    found = {
        verb: as_ann.get("/admin/search/", {"s": f"{verb} web"}).context["results"] for verb in ("revoke", "resume")
    }
    raised = as_ann.get("/admin/search/", {"s": "raise web"}).context["results"]

    titles = [(it.title, it.link) for it in found["revoke"] if it.title.startswith("Revoke: web (")]
    assert titles == [(f"Revoke: {token}", f"{change_url(token)}?do=revoke")]
    assert not [it for it in found["resume"] if it.description == "Command"]
    assert "Raise a limit: web-shop" in [it.title for it in raised]


def test_the_palette_offers_no_action_that_a_viewer_may_not_do(client):
    """Neither on what they see, nor on what they do not."""
    member = MembershipFactory(role="viewer")
    TokenFactory(name="web", project=member.project), TokenFactory(name="web")
    client.force_login(member.user)

    for verb in ("revoke", "raise", "suspend"):
        results = client.get("/admin/search/", {"s": f"{verb} web"}).context["results"]
        assert not [it for it in results if it.title.lower().startswith(verb)]


def test_a_name_without_a_verb_finds_rows(as_ann):
    """Whoever types a name looks for the row."""
    PolicyFactory(slug="token-limits")

    found = {term: as_ann.get("/admin/search/", {"s": term}).context["results"] for term in ("token", "open token")}

    assert "Command" not in [result.description for result in found["token"]]
    assert found["open token"][0].title == "Open Tokens"


def test_the_palette_offers_only_what_the_user_may_do(client):
    """A viewer adds nothing, and sees no instances."""
    client.force_login(MembershipFactory(role="viewer").user)

    found = {term: client.get("/admin/search/", {"s": term}).context["results"] for term in ("add policy", "open inst")}

    assert {term: [it.title for it in some] for term, some in found.items()} == {"add policy": [], "open inst": []}


def test_overrides_and_instances_are_found_by_name(as_ann, instance):
    """As they are called in an incident."""
    instance("edge-7")
    OverrideFactory(limit__name="edge-limit")

    titles = [result.title for result in as_ann.get("/admin/search/?s=edge").context["results"]]

    assert "edge-7" in titles
    assert any("edge-limit" in title for title in titles)


def test_the_menu_has_three_groups(as_ann):
    """With the help in the last one, and the outbox on the Overview only."""
    groups = navigation(as_ann.get("/admin/").wsgi_request)

    assert [group.get("title", "") for group in groups] == ["", "Limits", "Activity", "Access"]
    assert groups[-1]["items"][-1]["title"] == "Help"
    assert "Outbox" not in [entry["title"] for group in groups for entry in group["items"]]


def test_the_list_of_shortcuts_is_a_dialog(as_ann):
    """With a name, and a button that closes it."""
    page = as_ann.get("/admin/").text

    assert 'role="dialog" aria-modal="true" aria-labelledby="shortcuts-title"' in page
    assert "Search or run a command" in page
