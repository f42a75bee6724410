"""
Secrets and contents are used in each way that they can be, and then looked for everywhere.

Each canary is a word that nothing else contains. They go through REST, the admin, a real proxy before a real upstream,
the drain and the reports. Afterwards no table, no key of the store, no page, no export, no metric, no log, no file and
no argument of a task has one of them.
"""

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.signals import before_task_publish
from django.apps import apps
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from controlplane.keys.models import ManagementKey
from controlplane.policies.models import Policy
from controlplane.projects.models import Project, Token
from controlplane.usage.drain import drain
from enforcement.embedded import free_port
from tests.controlplane.access.addresses import is_of_a_row, patterns
from tests.enforcement.world import eventually
from tests.factories import LimitFactory, ModelPriceFactory, PolicyFactory, ProjectFactory
from tests.repository import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

PROMPT, COMPLETION, TOOL = "canary-prompt-7f3e", "canary-completion-7f3e", "canary-tool-argument-7f3e"
CREDENTIAL, PASSWORD = "canary-credential-7f3e", "canary-Password-7f3e"
CHAT_TOKEN = "TIiajkdnlazkcCanary7f3eX"
CHAT = "/v1/chat/completions"


class Provider(BaseHTTPRequestHandler):
    """Answers a chat completion, if it gets the credential of the proxy."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert PROMPT.encode() in body
        assert self.headers["Authorization"] == f"Bearer {CREDENTIAL}"
        choices = [{"index": 0, "message": {"role": "assistant", "content": COMPLETION}, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 100, "completion_tokens": 30, "total_tokens": 130}
        answer = json.dumps({"model": "gpt-x", "choices": choices, "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


class Proxy:
    """The ready-made proxy in a process of its own, with what it writes to its log and to its folder."""

    def __init__(self, store_url: str, upstream: int, folder: Path) -> None:
        self.port, self.folder, self.log = free_port(), folder, folder / "log"
        environment = {
            **os.environ,
            "SLUICEGATE_REDIS_URL": store_url,
            "SLUICEGATE_UPSTREAM_URL": f"http://127.0.0.1:{upstream}",
            "SLUICEGATE_UPSTREAM_CREDENTIAL": f"Bearer {CREDENTIAL}",
            "SLUICEGATE_STATE_DIR": str(folder),
            "SLUICEGATE_TIMEOUT_MS": "2000",
            "SLUICEGATE_LOOKUP_MS": "2000",
        }
        command = [sys.executable, "-m", "enforcement", "proxy", "--port", str(self.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            sent = {
                "Content-Type": "application/json",
                **{name.replace("_", "-"): one for name, one in headers.items()},
            }
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def is_ready(self) -> bool:
        try:
            return self.ask("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def proxy(store, tmp_path) -> Iterator[Proxy]:
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    proxy = Proxy(store.url, upstream.server_port, tmp_path)
    yield proxy
    proxy.stop()
    upstream.shutdown()
    upstream.server_close()


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


def test_no_secret_and_no_content_is_kept_or_shown(store, proxy, tasks, api, call, key, capfd) -> None:
    """But in the one reply that makes a secret."""
    seen, canaries = Seen(), {"password": PASSWORD, "credential": CREDENTIAL, "prompt": PROMPT}
    canaries |= {"completion": COMPLETION, "tool": TOOL, "key": key.secret}
    secrets = issue_and_rotate(seen, api, canaries)
    misplace(seen, call, api, secrets)
    spend(proxy, secrets["token 2"])
    proxy.stop()  # it reports its usage then
    drain(timezone.now())
    call_command("daily_report", day=timezone.now().date().isoformat())
    look_at_everything(seen, call, api, secrets["token 2"])
    for name in proxy.folder.rglob("*"):
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
    }.items():
        seen.add(name, answer.content.decode())
    admin = signed_in()
    seen.add("page search", admin.get("/admin/projects/token/", {"q": token}).content.decode())
    seen.add("page palette", admin.post("/admin/search/", {"q": other}).content.decode())
    seen.add("page wrong log-in", Client().post("/admin/login/", {"username": "x", "password": PASSWORD}).text)


def signed_in() -> Client:
    User.objects.create_superuser("operator", password=PASSWORD)
    return log_in()


def log_in() -> Client:
    client = Client(raise_request_exception=False)
    answer = client.post("/admin/login/", {"username": "operator", "password": PASSWORD, "next": "/admin/"})
    assert answer.status_code == 302
    return client


def spend(proxy: Proxy, secret: str) -> None:
    """Ask a model until the limit denies, and in ways that the proxy refuses."""
    assert eventually(proxy.is_ready, 20)
    tool = {"type": "function", "function": {"name": "f", "description": TOOL}}
    body = {"model": "gpt-x", "max_tokens": 50, "messages": [{"role": "user", "content": PROMPT}], "tools": [tool]}
    bearer = {"Authorization": f"Bearer {secret}"}
    broken = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    broken.request("POST", CHAT, f'{{"model": "{PROMPT}', {**bearer, "Content-Type": "application/json"})
    assert broken.getresponse().status >= 400
    broken.close()
    answers = [proxy.ask("POST", CHAT, body, **bearer) for _ in range(3)]
    assert [status for status, _ in answers] == [200, 200, 429]
    assert COMPLETION in answers[0][1]
    assert not any(word in answers[2][1] for word in (PROMPT, secret, CREDENTIAL))
    assert proxy.ask("POST", f"{CHAT}?key={secret}", body)[0] == 401


def look_at_everything(seen: Seen, call: Any, api: Any, secret: str) -> None:
    """Open each page and list that there is."""
    key = Token.objects.order_by("-created_at").first()
    assert secret.startswith(key.prefix)
    rows = {"projects_token": key, "projects_project": Project.objects.get(), "policies_policy": Policy.objects.get()}
    rows["projects_managementkey"] = ManagementKey.objects.get()
    client = log_in()
    for pattern in patterns():
        row = next((row for name, row in rows.items() if pattern.name.startswith(name)), None)
        if not is_of_a_row(pattern) or row:
            name, args = pattern.name, [row.pk] if row and is_of_a_row(pattern) else []
            answer = client.get(reversed_or_none(name, args) or "/admin/")
            seen.add(f"page {name}", b"".join(answer).decode("utf-8", "replace"))
    for path in (
        "projects",
        "tokens",
        "policies",
        "usage",
        "usage/metered",
        "denials",
        "audit",
        "revisions",
        "webhooks",
    ):
        seen.add(f"GET {path}", api("GET", path).content.decode())
    seen.add("metrics", call("GET", "/metrics").content.decode())


def reversed_or_none(name: str, args: list[Any]) -> str | None:
    for full in (f"admin:{name}", name):
        try:
            return reverse(full, args=args)
        except NoReverseMatch:
            continue
    return None


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
