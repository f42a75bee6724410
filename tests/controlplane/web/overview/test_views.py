"""The steps from an empty database to the first decision, in the browser or over REST."""

import http.server
import threading
from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.traffic.usage.models import UsageBatch
from controlplane.web.kit.first_steps import steps
from enforcement import Limiter
from tests.enforcement.world import eventually
from tests.factories import LimitFactory, ProjectFactory, TokenFactory, UsageRowFactory

pytestmark = pytest.mark.django_db

PATH = "/admin/first-steps/"


def done(client: Client) -> list[str]:
    """The names of the steps that the polled state says are done."""
    return [step["name"] for step in client.get(f"{PATH}state/").json()["steps"] if step["done"]]


def test_the_steps_lead_from_nothing_to_a_token(admin_client):
    """Project, policy of a template, and token, each with one button on one page."""
    admin_client.post(PATH, {"step": "project"})
    admin_client.post(PATH, {"step": "policy", "template": "public-api"})
    page = admin_client.post(PATH, {"step": "token"})

    token = Token.objects.get()
    secret = page.context["secret"]
    assert (token.name, token.project.slug, token.policy.slug) == ("first-token", "first", "public-api")
    assert secret.startswith(token.prefix)
    assert page.text.count(secret) >= 4  # the secret, and the examples that need it
    assert "no-store" in page["Cache-Control"]
    assert done(admin_client) == ["project", "policy", "token"]


def test_the_secret_is_shown_once(admin_client):
    """Reloading the page creates no second token and shows no secret."""
    secret = admin_client.post(PATH, {"step": "token"}).context["secret"]

    again = admin_client.post(PATH, {"step": "token"}, follow=True)

    assert Token.objects.count() == 1
    assert secret not in again.text
    assert "This step was done meanwhile." in again.text
    assert secret not in str(AuditEntry.objects.values_list("after", flat=True))


def test_what_is_done_over_rest_turns_green(admin_client, api):
    """The page does not care at which door a step is done."""
    api("POST", "projects", {"slug": "chat", "name": "Chat"})
    limit = {"name": "per-minute", "algorithm": "sliding_window", "quota": 20, "window_seconds": 60}
    api("POST", "policies", {"slug": "free", "name": "Free", "limits": [limit]})
    api("POST", "projects/chat/tokens", {"name": "web", "policy": "free"})

    assert done(admin_client) == ["project", "policy", "token"]
    assert [step.detail for step in steps()][:2] == ["“chat”", "Free: 20 requests per minute"]


def test_a_proxy_is_never_called_done_while_nobody_knows(admin_client, instance):
    """Without a store the last known instances may have stopped."""
    instance("proxy-1")

    assert "Nobody knows which run." in admin_client.get(PATH).text
    assert "proxy" not in done(admin_client)


@pytest.mark.django_db(transaction=True)
def test_live_proxies_are_named(admin_client, store):
    """As their heartbeats say."""
    admin_client.post(PATH, {"step": "project"})
    with Limiter(store.url, instance="proxy-1") as limiter:
        assert limiter.start()

        assert eventually(lambda: next(step.detail for step in steps() if step.name == "proxy") == "proxy-1 reports")


def test_the_first_decision_turns_the_last_step_green(admin_client):
    """What the proxy has reported, and how long ago."""
    UsageRowFactory(period="day", allowed=3, denied=1)
    UsageBatch.objects.create(batch_id="1")

    last = steps()[-1]

    assert (last.done, last.detail) == (True, "3 allowed and 1 denied, received 0 s ago")
    assert "request" in done(admin_client)


def test_nothing_is_called_done_in_an_empty_database(admin_client):
    """No data is never green."""
    assert done(admin_client) == []


@pytest.mark.parametrize("template", ["", "nope", "../public-api"])
def test_a_template_that_is_none_is_refused(admin_client, template):
    """The message names the field and the choices."""
    page = admin_client.post(PATH, {"step": "policy", "template": template}, follow=True)

    assert "template: must be one of public-api, llm-budget" in page.text
    assert not Policy.objects.exists()


def test_a_slug_that_is_taken_is_named(admin_client):
    """Somebody has an empty policy of that name."""
    Policy.objects.create(slug="partner-gold", name="Gold")

    page = admin_client.post(PATH, {"step": "policy", "template": "partner-tiers"}, follow=True)

    assert "A policy partner-gold exists already." in page.text
    assert (Policy.objects.count(), Project.objects.count()) == (1, 0)


@pytest.mark.parametrize("step", ["", "proxy", "nope"])
def test_a_step_that_is_none_is_refused(admin_client, step):
    """Only three of them are forms."""
    assert admin_client.post(PATH, {"step": step}).status_code == 403


@pytest.mark.parametrize("path", ["", "state/", "send/"])
def test_only_operators_see_the_steps(path):
    """The page creates shared policies and shows the fleet."""
    client = Client()
    client.force_login(User.objects.create_user("bob", is_staff=True))

    assert client.post(f"{PATH}{path}" if path == "send/" else PATH + path, {"step": "project"}).status_code in (
        403,
        405,
    )
    assert not Project.objects.exists()


def test_the_examples_have_the_address_of_this_installation(admin_client, settings):
    """In every language that a newcomer may use."""
    settings.PROXY_URL = "https://edge.example/"
    TokenFactory(project=ProjectFactory(), policy=LimitFactory().policy)

    page = admin_client.get(PATH)

    assert [title for _, title, _ in page.context["snippets"]] == [
        *("curl", "Python", "FastAPI", "nginx", "Envoy", "OpenAI SDK"),
    ]
    assert "curl -i https://edge.example/v1/hello" in page.text
    assert "base_url=&quot;https://edge.example/v1&quot;" in page.text


class Proxy(http.server.BaseHTTPRequestHandler):
    seen: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Authorization"]))
        self.send_response(429 if "v1" in self.path else 500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(settings) -> Iterator[type[Proxy]]:
    Proxy.seen = []
    with http.server.HTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        settings.PROXY_URL = f"http://127.0.0.1:{server.server_port}"
        yield Proxy
        server.shutdown()
        thread.join()


def test_the_first_request_is_sent_for_the_user(admin_client, proxy):
    """The secret of the page goes to the proxy, and the status comes back in words."""
    secret = admin_client.post(PATH, {"step": "token"}).context["secret"]

    reply = admin_client.post(f"{PATH}send/", {"secret": secret})

    assert proxy.seen == [("/v1/hello", f"Bearer {secret}")]
    assert reply.json() == {"sentence": "The proxy answered with status 429."}


@pytest.mark.parametrize("url", ["", "https://edge.example", "http://127.0.0.1.example"])
def test_no_request_is_sent_to_another_host(admin_client, settings, url):
    """A form does not make the server call others."""
    settings.PROXY_URL = url

    assert admin_client.post(f"{PATH}send/", {"secret": TokenFactory().secret}).status_code == 403


def test_a_proxy_that_is_away_is_a_sentence(admin_client, settings):
    """No error page."""
    settings.PROXY_URL = "http://127.0.0.1:1"

    reply = admin_client.post(f"{PATH}send/", {"secret": TokenFactory().secret})

    assert reply.json()["sentence"] == "Nothing answers at http://127.0.0.1:1/v1/hello. Is the proxy running?"


@pytest.mark.django_db(transaction=True)
def test_a_step_that_several_do_at_once_is_done_once(admin_user):
    """Each of them gets the page, and no error."""
    answers = []

    def choose() -> None:
        client = Client()
        client.force_login(admin_user)
        begin.wait()
        answers.append(client.post(PATH, {"step": "policy", "template": "public-api"}).status_code)
        connection.close()

    begin, threads = threading.Barrier(4), [threading.Thread(target=choose) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == [302] * 4
    assert (Policy.objects.count(), Project.objects.count()) == (1, 1)
