import json
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.http import HttpResponse
from django.template import Context, Template
from django.templatetags.static import static
from django.test import Client, client
from django.utils import timezone
from pytest_django.live_server_helper import LiveServer

from controlplane.changes.change.transaction import Actor, change
from controlplane.core import optional
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.actions import issue_token
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.health.conditions import latest
from controlplane.traffic.fleet.models import Instance
from enforcement import Limiter
from enforcement.embedded import ValkeyServer
from enforcement.store.client import STORE_ERRORS
from tests.controlplane import forks
from tests.factories import LimitFactory, ManagementKeyFactory, PolicyFactory, ProjectFactory, TokenFactory, UserFactory
from tests.openapi import DOCUMENT
from tests.requires import chromium
from tests.scale import scale

Call = Callable[..., HttpResponse]
ANN = Actor("ann", "api", "req-1")
PASSWORD = "correct horse battery staple"


@pytest.fixture(autouse=True)
def health_of_now() -> None:
    """Let each test find out for itself what needs a hand."""
    latest.forget()


@pytest.fixture(scope="session", autouse=True)
def contexts_of_pages() -> Iterator[None]:
    """
    Let the test client copy the context of a page, and not of each template that the page includes or extends.

    A page has a hundred of these, whose copies would be an eighth of its cost.
    """

    def keep_of_pages(store: dict[str, Any], *, template: Template, context: Context, **about: Any) -> None:
        if context.template is template:
            keep(store, template=template, context=context, **about)

    keep = client.store_rendered_templates
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "store_rendered_templates", keep_of_pages)
        yield


@pytest.fixture(autouse=True)
def failed_sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Exception]]]:
    """
    The sources that failed though they are optional, and with what. It must be empty after a test.

    A mistake in the code would be no worse than a sentence on a page. A test with a fault clears the list. That there
    is no store, or that it does not answer, is none.
    """
    found: list[tuple[str, Exception]] = []

    def note(source: str, exc: Exception) -> None:
        if not isinstance(exc, STORE_ERRORS) or isinstance(exc, redis.ResponseError):
            found.append((source, exc))
        noted(source, exc)

    noted = optional.note
    monkeypatch.setattr(optional, "note", note)
    yield found
    assert not found, "\n".join("".join(traceback.format_exception(exc)) for _, exc in found)


@pytest.fixture(scope="module")
def kept_rows(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """
    Keep rows that fixtures of this scope make until the last test of the module, where making them takes long.

    Each test sees them as they were made, because it begins with a savepoint. No test of the module may commit.
    """
    with django_db_blocker.unblock(), transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.fixture
def key(db) -> ManagementKey:
    """A key that may do everything."""
    return ManagementKeyFactory(name="ann")


@pytest.fixture
def call() -> Call:
    """``call("PATCH", "projects/chat", {...}, key=key, **headers)``: one request to the API, body as JSON."""

    def send(method: str, path: str, body: Any = None, *, key: ManagementKey | None = None, **headers: str) -> Any:
        client = Client(raise_request_exception=False)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["Authorization"] = f"Bearer {key.secret}"
        options: dict[str, Any] = {"headers": sent}
        if body is not None:
            text = body if isinstance(body, str | bytes) else json.dumps(body)
            options |= {"data": text, "content_type": sent.pop("content-type", "application/json")}
        path = path if path.startswith(("/", "http")) else f"/api/v1/{path}"
        return client.generic(method, path, **options)

    return send


@pytest.fixture
def api(call: Call, key: ManagementKey) -> Call:
    """``call`` with the key that may do everything."""

    def send(method: str, path: str, body: Any = None, **headers: str) -> HttpResponse:
        return call(method, path, body, key=key, **headers)

    return send


@dataclass(frozen=True)
class Answer:
    """What a server said over a socket."""

    status_code: int
    headers: dict[str, str]
    body: Any


@pytest.fixture
def web(transactional_db: None, live_server: LiveServer) -> Callable[..., Answer]:
    """``call`` over a socket to a real server, where each request has a thread and a database connection."""
    address = urlsplit(live_server.url).netloc

    def send(method: str, path: str, body: Any = None, *, key: ManagementKey, **headers: str) -> Answer:
        sent = {"Authorization": f"Bearer {key.secret}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(HTTPConnection(address, timeout=60)) as connection:
            connection.request(method, f"/api/v1/{path}", None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            text = response.read()
        return Answer(response.status, dict(response.getheaders()), json.loads(text) if text else None)

    return send


def between_reads(table: str, deed: Callable[[], Any]) -> Callable[..., Any]:
    """Return a wrapper of queries that runs *deed* once, in another thread, before the first query of *table*."""
    done = threading.Event()

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if f'FROM "{table}"' in sql and not done.is_set():
            done.set()
            writer = threading.Thread(target=deed)
            writer.start()
            writer.join()
        return execute(sql, params, many, context)

    return wrapper


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return what the calls return that all begin at the same moment, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def begin(one: Callable[[], Any]) -> Any:
        barrier.wait()
        return one()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(begin, calls))


@pytest.fixture
def instance(db) -> Callable[..., Instance]:
    """An enforcer that was heard of just now, unless ``seen_at`` says otherwise."""

    def heard_of(pk: str, **fields: Any) -> Instance:
        return Instance.objects.create(pk=pk, **{"state": "ok", "seen_at": timezone.now(), **fields})

    return heard_of


@pytest.fixture
def lost_at() -> datetime:
    """When an instance was last heard of that is lost by now."""
    return timezone.now() - timedelta(seconds=16)


@pytest.fixture
def actor() -> Actor:
    return ANN


@pytest.fixture
def document(client_of_store: redis.Redis) -> Callable[[str], Any]:
    """What an enforcer would read: ``document("policy:<id>")``, None when there is none."""

    def read(name: str) -> Any:
        text = client_of_store.hget("sg:{doc}:documents", name)
        return text and json.loads(text)

    return read


@pytest.fixture
def token_document(client_of_store: redis.Redis) -> Callable[[str], Any]:
    """What an enforcer would read of the token with this digest, None when there is none."""

    def read(digest: str) -> Any:
        text = client_of_store.get(f"sg:{{doc}}:token:{digest}")
        return text and json.loads(text)

    return read


@pytest.fixture
def full(transactional_db: None, store: ValkeyServer) -> Iterator[Project]:
    """A project of which 12 users asked where 5 may have counters; the enforcer still runs."""
    limit = LimitFactory(policy=PolicyFactory(slug="full"), name="user", quota=1_000, partition_by=["user"])
    project = ProjectFactory(slug="full", policy=limit.policy, partition_cap=5)
    with change(actor=Actor("ann", "command")) as tx:
        tx.created(limit.policy)
        tx.created(project)
        _, secret = issue_token(tx, project=project, name="ci")
    with Limiter(store.url, timeout=1.0) as limiter:
        for number in range(12):
            assert limiter.check(secret, attributes={"user": f"u{number}"}).allowed
        yield project


@pytest.fixture
def limiter(store: ValkeyServer) -> Iterator[Limiter]:
    with Limiter(store.url, timeout=2.0, lookup=2.0) as limiter:
        yield limiter


@pytest.fixture(scope="session")
def openapi() -> dict[str, Any]:
    """The document of REST as it is checked in. Building it takes a second, and `make lint` compares the two."""
    return json.loads(DOCUMENT.read_text())


@pytest.fixture
def chat(db: None) -> Project:
    return ProjectFactory(slug="chat")


@pytest.fixture
def limit(db: None) -> Limit:
    """Give the limit of the policy "free", 25 requests a minute."""
    return LimitFactory(policy__slug="free", name="per-minute", quota=25)


@pytest.fixture
def token(limit: Limit) -> Token:
    """Give the token "web" of the project "chat" under this limit."""
    return TokenFactory(project=ProjectFactory(slug="chat"), policy=limit.policy, name="web")


@pytest.fixture
def environment(store, transactional_db) -> dict[str, str]:
    """What a process of the control plane is told, to work on the database and the store of the test."""
    name, user, port = (connection.settings_dict[key] for key in ("NAME", "USER", "PORT"))
    database = f"sqlite:///{name}" if connection.vendor == "sqlite" else f"postgres://{user}@127.0.0.1:{port}/{name}"
    return {
        **os.environ,
        "DATABASE_URL": database,
        "SLUICEGATE_REDIS_URL": store.url,
        "DJANGO_SETTINGS_MODULE": "tests.quick_settings",
    }


@pytest.fixture
def start(environment) -> Iterator[Callable[..., forks.Process]]:
    """Start a Python process with these arguments; what is left of its group is killed after the test."""
    started: list[forks.Process] = []

    def run(*arguments: str) -> forks.Process:
        started.append(forks.start(arguments, environment))
        return started[-1]

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def run_python(start) -> Callable[[str], forks.Process]:
    """Start a process of the control plane that runs this code."""
    return lambda code: start("-c", f"import django; django.setup()\n{code}")


@pytest.fixture
def ann(db: None) -> User:
    """An operator with every right."""
    return User.objects.create_superuser("ann", "ann@example.org", PASSWORD)


@pytest.fixture
def as_ann(ann: User, client: Client) -> Client:
    """Ann's session, without a browser."""
    client.force_login(ann)
    return client


@pytest.fixture
def as_operator(db: None, client: Client) -> Client:
    """The session of a member of the operators who is no superuser."""
    client.force_login(UserFactory(username="ann", operator=True))
    return client


@pytest.fixture
def told(as_ann: Client) -> Callable[[Any], list[str]]:
    """The messages that a page shows to whoever did something."""

    def messages_of(response: Any) -> list[str]:
        return [str(message) for message in response.context["messages"]]

    return messages_of


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    """The system's Chromium: the registries carry none."""
    # All pages share a process that renders: to start one takes longer than to load a page.
    own = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *scale(["--renderer-process-limit=1"], [])]
    return {"executable_path": chromium(), "args": own}


@pytest.fixture(scope="session")
def warm_context(browser, live_server: LiveServer):
    """
    A context for many tests, in which stylesheets and scripts are loaded and compiled once.

    Its first page stays open, so that its process does too. The browser closes both.
    """
    context = browser.new_context()
    context.new_page().goto(f"{live_server.url}{static('controlplane/admin.css')}")
    return context


@pytest.fixture
def context(request: pytest.FixtureRequest, browser):  # of which tests/browsers.py wants to know
    """A context without cookies and data: in a small run the warm one, unless the test asks for one with its marker."""
    if scale(False, True) or request.node.get_closest_marker("browser_context_args"):
        yield request.getfixturevalue("new_context")()
        return
    context = request.getfixturevalue("warm_context")
    first, *_ = context.pages
    yield context
    for page in context.pages:
        if page is not first:
            page.close()
    context.set_offline(False)
    context.clear_cookies()
    first.evaluate("localStorage.clear()")


@pytest.fixture
def walker(transactional_db: None, store: ValkeyServer, live_server: LiveServer, page) -> Iterator:
    """Somebody at a browser, before a server with a store; at the end nothing may have gone wrong."""
    from tests.controlplane.web.kit.walking import Walker

    User.objects.create_superuser("ann", "ann@example.org", PASSWORD)
    walker = Walker(page, live_server.url)
    yield walker
    assert not walker.faults, "\n".join(walker.faults)
