"""A project's account of the store tries everything, and neither other projects nor the administration notice."""

import itertools
import logging
import time
from contextlib import ExitStack

import pytest
import redis
from django.contrib import admin as django_admin
from django.core.management import call_command
from django.db.models import Sum
from django.urls import reverse
from django.utils import timezone

from controlplane.operations.alerts import tasks as alerts
from controlplane.releases.publishing import shared_keys
from controlplane.releases.publishing import tasks as publishing
from controlplane.traffic.callers import tasks as preview
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.reservations import tasks as reservations
from controlplane.traffic.usage import tasks as usage
from controlplane.traffic.usage.models import UsageRow
from enforcement import Limiter
from enforcement.model.keys import Keys
from enforcement.store_calls.acl import ACCOUNTS, enforcer
from tests.controlplane.hostile import Hostile, send
from tests.enforcement.world import eventually
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory
from tests.scale import scale

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.proof]

KEYS = Keys()
TASKS = (
    *(usage.drain, publishing.collect_heartbeats, publishing.reconcile, usage.checkpoint, preview.fold),
    *(reservations.record_lost, reservations.settle_overdue, alerts.evaluate),
)
PASSWORD = "a-password-of-24-letters"
COMMANDS_A_ROUND = 120


@pytest.fixture
def accounts(store, settings):
    """``accounts("worker")`` gives the account its rights, and returns its address. The control plane is the worker."""
    with redis.Redis.from_url(store.url, decode_responses=True, protocol=2) as client:

        def make(name: str, rules: list[str]) -> str:
            client.execute_command("ACL SETUSER", name, "on", f">{PASSWORD}", *rules)
            made.append(name)
            return store.url.replace("redis://", f"redis://{name}:{PASSWORD}@")

        made: list[str] = []
        settings.REDIS_URL = make("worker", ACCOUNTS["worker"](KEYS))
        yield make
        client.execute_command("ACL DELUSER", *made)


def work() -> None:
    """Do what the worker does every few seconds. No task may raise."""
    for task in TASKS:
        task()


@pytest.mark.parametrize("seed", scale([1], [1, 2, 3]))
def test_a_hostile_account_of_a_project_harms_no_other(seed, accounts, store, client_of_store, admin_client, caplog):
    """Usage of others in SQL is what their clients saw, all pages answer, and what all share is repaired."""
    caplog.set_level(logging.CRITICAL, "controlplane")  # each lie is logged
    alpha, beta = ProjectFactory(slug="alpha", has_intake=True), ProjectFactory(slug="beta")
    policy = LimitFactory(policy=PolicyFactory(project=beta), name="rpm", quota=10**6, window_seconds=86_400).policy
    token, own = TokenFactory(project=beta, policy=policy), TokenFactory(project=alpha)
    call_command("publish", "--all", verbosity=0)
    hostile = Hostile(client_of_store, _made(accounts, alpha), alpha.pk, (beta.pk, token.pk, policy.pk), seed)
    commands = hostile.commands()
    admin_client.cookies["sluicegate_zone"] = "Europe/Berlin"
    url = store.url.replace("redis://", f"redis://enforcer-alpha:{PASSWORD}@")
    seen, ends = 0, time.monotonic() + scale(0, 60)
    with ExitStack() as stack:
        evil = stack.enter_context(redis.Redis.from_url(url, protocol=2))
        honest = accounts("enforcer", enforcer(KEYS))
        limiter = stack.enter_context(Limiter(honest, timeout=5.0, instance="proxy-honest"))
        done = 0
        for number in itertools.count():
            done += send(evil, list(itertools.islice(commands, COMMANDS_A_ROUND)))
            done += send(evil, hostile.recipes(KEYS))
            decisions = [limiter.check(token.secret) for _ in range(5)]
            assert {decision.source for decision in decisions} <= {"store", "lease"}
            seen += sum(decision.allowed for decision in decisions)
            work()
            if number >= scale(2, 20) and time.monotonic() > ends:
                break
        assert done > 50
        stopped = timezone.now()
        assert eventually(lambda: work() or is_repaired(client_of_store, stopped), seconds=10, every=0.3)
    work()

    rows = UsageRow.objects.filter(period="day", project_id=beta.pk, limit_name="")
    assert rows.aggregate(Sum("allowed"), Sum("denied")) == {"allowed__sum": seen, "denied__sum": 0}
    assert not UsageRow.objects.filter(token_id=token.pk).exclude(project_id=beta.pk).exists()
    assert not UsageRow.objects.filter(policy_id=policy.pk).exclude(project_id=beta.pk).exists()
    token.refresh_from_db()
    assert token.last_used_at is not None
    assert not Instance.objects.filter(seen_at__gt=timezone.now()).exists()
    for address in pages(alpha, beta, token, own, policy):
        assert admin_client.get(address).status_code in (200, 302), address


def is_repaired(client, stopped) -> bool:
    """Return whether every shared key is as it should be, and the heartbeats of the others are read."""
    honest = Instance.objects.filter(pk="proxy-honest", seen_at__gt=stopped)
    return honest.exists() and not shared_keys.spoilt(client, shared_keys.shared_keys())


def _made(accounts, project) -> str:
    accounts("enforcer-alpha", enforcer(KEYS, [project.pk]))
    return "enforcer-alpha"


def pages(*rows):
    """Yield the address of each list of the admin, of the first page, and of the rows."""
    yield reverse("admin:index")
    for model in django_admin.site._registry:
        yield reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    for row in rows:
        yield reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])
