"""What the admin does with a form while somebody else changes the same rows."""

import threading

import pytest
from django.db import connection

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project
from controlplane.web.kit.forms import version_of
from tests.controlplane.conftest import ANN, between_reads
from tests.controlplane.web.kit.test_forms import NEW_PROJECT, POLICIES, PROJECTS, errors_of
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("table", ["policies_limit", "policies_policy"])
def test_a_form_shows_one_moment(as_ann, store, table):
    """Its row and its limits are read by several queries, and the form is saved only over the state that it shows."""
    limit = LimitFactory(name="per-minute", quota=1, policy__slug="free", policy__name="quota 1")

    def write():
        with change(actor=ANN) as tx:
            policy = Policy.objects.get()
            before = policy.as_record()
            Policy.objects.update(name="quota 2")
            Limit.objects.update(quota=2)
            tx.updated(Policy.objects.get(), before)
        connection.close()

    with connection.execute_wrapper(between_reads(table, write)):
        page = as_ann.get(f"{POLICIES}{limit.policy.pk}/change/")

    form, (limits,) = page.context["adminform"].form, page.context["inline_admin_formsets"]
    shown = form.initial["name"], limits.formset.forms[0].initial["quota"], form.initial["seen_version"]
    now = ("quota 2", 2, version_of(Policy.objects.get()))
    assert shown == now if table == "policies_policy" else shown[:2] == ("quota 1", 1) and shown[2] != now[2]
    assert Limit.objects.get().quota == 2


def at_the_last_moment(deed):
    """Return a wrapper of queries that runs *deed* once, in another thread, before the first row is written."""
    done = threading.Event()

    def in_thread():
        deed()
        connection.close()

    def wrapper(execute, sql, params, many, context):
        if sql.startswith(("UPDATE", "INSERT")) and not done.is_set():
            done.set()
            writer = threading.Thread(target=in_thread)
            writer.start()
            writer.join()
        return execute(sql, params, many, context)

    return wrapper


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has one writer at a time.")
def test_a_choice_that_is_deleted_while_the_form_is_saved_is_told_at_its_field(as_ann, store):
    """PostgreSQL finds it when it commits, after the form was found to be valid."""
    project, policy = ProjectFactory(name="A"), PolicyFactory()
    fields = {**NEW_PROJECT, "slug": project.slug, "name": "B", "policy": policy.pk}
    fields["seen_version"] = version_of(project)

    with connection.execute_wrapper(at_the_last_moment(lambda: Policy.objects.all().delete())):
        response = as_ann.post(f"{PROJECTS}{project.pk}/change/", fields)

    assert errors_of(response)["policy"] == ["Select a valid choice. That choice is not one of the available choices."]
    assert (Project.objects.get().name, AuditEntry.objects.count()) == ("A", 0)


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has one writer at a time.")
def test_a_name_that_another_user_takes_at_the_same_moment_is_told_at_its_field(as_ann, store):
    """Both forms were valid, and one was saved first."""
    with connection.execute_wrapper(at_the_last_moment(lambda: ProjectFactory(slug="chat"))):
        response = as_ann.post(f"{PROJECTS}add/", {**NEW_PROJECT, "slug": "chat"})

    assert errors_of(response)["slug"] == ["Project with this Slug already exists."]
