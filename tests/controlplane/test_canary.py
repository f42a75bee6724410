"""
Secrets and contents are used in each way that they can be, and then looked for everywhere.

Each canary is a word that nothing else contains. They go through REST, the admin, a real proxy before a real upstream,
the drain and the reports. Afterwards no table, no key of the store, no page, no export, no metric, no log, no file and
no argument of a task has one of them.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
import redis
from celery.signals import before_task_publish
from django.apps import apps
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.jobs import run
from controlplane.operations.jobs.models import Job
from controlplane.operations.webhooks.models import Destination
from controlplane.traffic.usage.drain import drain
from enforcement.embedded import free_port
from tests.controlplane.objects.people.addresses import address, is_of_a_row, patterns
from tests.controlplane.ready_proxy import Upstream, ready_proxy
from tests.factories import LimitFactory, ModelPriceFactory, PolicyFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

PROMPT, COMPLETION, TOOL = "canary-prompt-7f3e", "canary-completion-7f3e", "canary-tool-argument-7f3e"
CREDENTIAL, PASSWORD = "canary-credential-7f3e", "canary-Password-7f3e"
CHAT_TOKEN = "TIiajkdnlazkcCanary7f3eX"
CHAT = "/v1/chat/completions"
LISTS = ("projects", "tokens", "policies", "usage", "usage/metered", "denials", "audit", "revisions", "webhooks")
LISTS += ("deliveries", "management-keys", "usage/export", "audit/export", "statements/export")


class Provider(Upstream):
    """Answers a chat completion, if it gets the credential of the proxy."""

    def do_POST(self) -> None:
        assert PROMPT.encode() in self.body()
        assert self.headers["Authorization"] == f"Bearer {CREDENTIAL}"
        choices = [{"index": 0, "message": {"role": "assistant", "content": COMPLETION}, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130}
        self.reply({"model": "gpt-x", "choices": choices, "usage": usage})


@pytest.fixture
def tasks() -> Iterator[list[str]]:
    """The arguments of each task that somebody starts meanwhile."""
    sent: list[str] = []

    def note(body: Any = None, headers: Any = None, **_: Any) -> None:
        sent.append(repr((body, headers)))

    before_task_publish.connect(note, weak=False)
    yield sent
    before_task_publish.disconnect(note)


class Seen:
    """Texts in which no canary may be, by where they were seen."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, where: str, text: Any) -> None:
        self.texts[where] = self.texts.get(where, "") + (text if isinstance(text, str) else repr(text))

    def places_of(self, canary: str) -> list[str]:
        return [where for where, text in self.texts.items() if canary in text]


def test_no_secret_and_no_content_is_kept_or_shown(store, tmp_path, tasks, api, call, key, capfd) -> None:
    """But in the one reply that makes a secret."""
    seen, canaries = Seen(), {"password": PASSWORD, "credential": CREDENTIAL, "prompt": PROMPT}
    canaries |= {"completion": COMPLETION, "tool": TOOL, "key": key.secret}
    secrets = issue_and_rotate(seen, api, canaries)
    misplace(seen, call, api, secrets)
    own = {"SLUICEGATE_UPSTREAM_CREDENTIAL": f"Bearer {CREDENTIAL}", "SLUICEGATE_STATE_DIR": str(tmp_path)}
    with ready_proxy(store.url, port := free_port(), Provider, tmp_path / "log", **own):
        spend(port, secrets["token 2"])
    drain(timezone.now())
    call_command("daily_report", day=timezone.now().date().isoformat())
    look_at_everything(seen, call, api, secrets["token 2"])
    for name in tmp_path.rglob("*"):
        if name.is_file():
            seen.add(f"file {name.name}", name.read_bytes().decode("utf-8", "replace"))
    for model in apps.get_models():
        for row in model._default_manager.values():
            seen.add(f"table {model._meta.db_table}", row)
    read_store(seen, store)
    written = capfd.readouterr()
    seen.add("log", written.out + written.err)
    seen.add("tasks", " ".join(tasks))

    assert {name: seen.places_of(canary) for name, canary in canaries.items() if seen.places_of(canary)} == {}
    assert {"table usage_meteredrow", "store", "log", "file log", "page index", "GET usage"} <= set(seen.texts)


def issue_and_rotate(seen: Seen, api: Any, canaries: dict[str, str]) -> dict[str, str]:
    """Make a metered project, and a token twice over REST. Return the secrets by name, also as canaries."""
    policy = PolicyFactory(slug="llm")
    LimitFactory(policy=policy, name="tokens", unit="tokens", quota=100_000)
    LimitFactory(policy=policy, name="requests", quota=2, match_path="/v1/**")
    ProjectFactory(slug="chat", policy=policy)
    ModelPriceFactory(pattern="gpt-*")
    again = {"Idempotency-Key": '"once"'}
    first = api("POST", "projects/chat/tokens", {"name": "desk"}, **again).json()
    seen.add("POST repeated", api("POST", "projects/chat/tokens", {"name": "desk"}, **again).content.decode())
    rotated = api("POST", f"tokens/{first['id']}/rotate", {"overlap_seconds": 60}).json()
    secrets = {"token 1": first["secret"], "token 2": rotated["secret"]}
    canaries |= secrets | webhooks(seen, api)
    return secrets


def webhooks(seen: Seen, api: Any) -> dict[str, str]:
    """Make a signed webhook and a chat, change and try them, and return their secrets."""
    made = api("POST", "webhooks", {"name": "ops", "project": "chat", "url": "https://alerts.example/hook"}).json()
    chat = {
        "name": "room",
        "project": "chat",
        "kind": "chat",
        "service_url": f"slack://T1JJ3T3L2/A1BRTD4JD/{CHAT_TOKEN}",
    }
    answers = [api("POST", "webhooks", chat)]
    assert answers[0].status_code == 201, answers[0].content
    for webhook in (made["id"], answers[0].json()["id"]):
        answers += [api("PATCH", f"webhooks/{webhook}", {"active": False}), api("POST", f"webhooks/{webhook}/test", {})]
    answers += [api("POST", "webhooks", {**chat, "service_url": f"unknown://{CHAT_TOKEN}"}), api("GET", "deliveries")]
    seen.add("webhooks", "".join(answer.content.decode() for answer in answers))
    return {"webhook": made["secret"], "chat": CHAT_TOKEN}


def misplace(seen: Seen, call: Any, api: Any, secrets: dict[str, str]) -> None:
    """Send secrets to where they do not belong: into paths, queries, bodies and the wrong header."""
    token, other = secrets["token 1"], secrets["token 2"]
    for name, answer in {
        "GET wrong path": api("GET", f"tokens/{token}"),
        "GET wrong query": api("GET", f"tokens?name={token}&prefix={token}"),
        "GET unknown parameter": api("GET", f"projects?{token}=1"),
        "PATCH wrong body": api("PATCH", "projects/chat", {token: 1}),
        "POST wrong type": api("POST", "projects/chat/tokens", {"name": [token]}),
        "GET token as key": call("GET", "projects", Authorization=f"Bearer {token}"),
        "GET key that is wrong": call("GET", "projects", Authorization=f"Basic {token}"),
        "POST explain": api("POST", "explain", {"token": other}),
        "POST large batch": api("POST", "policies/batch", large_batch(token, other)),
    }.items():
        seen.add(name, answer.content.decode())
    run.run_all(600.0, pause=lambda seconds: None)
    seen.add("GET job", api("GET", f"jobs/{Job.objects.get(state='failed').pk}").content.decode())
    admin = signed_in()
    seen.add("page search", admin.get("/admin/projects/token/", {"q": token}).content.decode())
    seen.add("page palette", admin.post("/admin/search/", {"q": other}).content.decode())
    seen.add("page wrong log-in", Client().post("/admin/login/", {"username": "x", "password": PASSWORD}).text)


def large_batch(token: str, other: str) -> dict[str, Any]:
    """Return more items than a request creates, of which some have secrets in the place of a name, value and field."""
    wrong = [{"slug": token, "name": "P", "limits": []}, {"slug": "p", "name": "P", "limits": [], "project": other}]
    return {"items": [*wrong, {token: other}, *({"slug": f"p{n}", "name": "P", "limits": []} for n in range(1000))]}


def signed_in() -> Client:
    User.objects.create_superuser("operator", password=PASSWORD)
    return log_in()


def log_in() -> Client:
    client = Client(raise_request_exception=False)
    answer = client.post("/admin/login/", {"username": "operator", "password": PASSWORD, "next": "/admin/"})
    assert answer.status_code == 302
    return client


def spend(port: int, secret: str) -> None:
    """Ask a model until the limit denies, and in ways that the proxy refuses."""
    tool = {"type": "function", "function": {"name": "f", "description": TOOL}}
    body = {"model": "gpt-x", "max_tokens": 50, "messages": [{"role": "user", "content": PROMPT}], "tools": [tool]}
    bearer = {"Authorization": f"Bearer {secret}"}
    assert post(port, CHAT, f'{{"model": "{PROMPT}', bearer)[0] == 403  # what cannot be metered
    answers = [post(port, CHAT, json.dumps(body), bearer) for _ in range(3)]
    assert [status for status, _ in answers] == [200, 200, 429]
    assert COMPLETION in answers[0][1]
    assert not any(word in answers[2][1] for word in (PROMPT, secret, CREDENTIAL))
    assert post(port, f"{CHAT}?key={secret}", json.dumps(body), {})[0] == 401


def post(port: int, path: str, body: str, headers: dict[str, str]) -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def look_at_everything(seen: Seen, call: Any, api: Any, secret: str) -> None:
    """Open each page that there is, those of a row if there is one, and each list of REST."""
    rows: dict[str, Any] = {"projects_token": Token.objects.order_by("-created_at").first()}
    assert secret.startswith(rows["projects_token"].prefix)
    for name, model in {"project": Project, "managementkey": ManagementKey}.items():
        rows[f"projects_{name}"] = model.objects.get()
    rows |= {"policies_policy": Policy.objects.get(), "webhooks_destination": Destination.objects.first()}
    rows |= {"jobs_job": Job.objects.get()}
    client, opened = log_in(), 0
    for pattern in patterns():
        row = next((row for name, row in rows.items() if pattern.name.startswith(name)), None)
        if row or not is_of_a_row(pattern):
            answer = client.get(address(pattern, row))
            opened += answer.status_code == 200
            seen.add(f"page {pattern.name}", b"".join(answer).decode("utf-8", "replace"))
    assert opened > 60
    for path in LISTS:
        answer = api("GET", path)
        assert answer.status_code == 200
        seen.add(f"GET {path}", b"".join(answer).decode())
    seen.add("metrics", call("GET", "/metrics").content.decode())


def read_store(seen: Seen, store: Any) -> None:
    """Read each key by its kind."""
    with redis.Redis.from_url(store.url, decode_responses=True, encoding_errors="replace") as client:
        for name in client.scan_iter():
            kind = client.type(name)
            read = {
                "string": client.get,
                "hash": client.hgetall,
                "list": lambda name: client.lrange(name, 0, -1),
                "set": client.smembers,
                "zset": lambda name: client.zrange(name, 0, -1, withscores=True),
                "stream": client.xrange,
            }[kind]
            seen.add("store", f"{name} {read(name)!r}\n")
