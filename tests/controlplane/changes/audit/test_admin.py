"""The audit as people read, filter and export it."""

import csv
import io
import json
import re

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.forms import model_to_dict
from django.test.utils import CaptureQueriesContext

from controlplane.changes.audit import chain, export
from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.keys.models import ManagementKey
from tests.controlplane.changes.audit.test_chain import LATER
from tests.factories import LimitFactory, MembershipFactory, ProjectFactory, TokenFactory, UserFactory

pytestmark = pytest.mark.django_db(transaction=True)

ANN = Actor("ann", "admin")
LIST = "/admin/policies/auditentry/"


def found(page) -> list[str]:
    """The ids of the entries in a list, oldest first."""
    pattern = rf'href="{LIST}(aud_5F\w+)/change/'
    return sorted({pk.replace("_5F", "_") for pk in re.findall(pattern, page.content.decode())})


@pytest.fixture
def three(entry) -> None:
    """Entry 1: ann created a policy. Entry 2: a key revoked a token. Entry 3: ann undid something."""
    entry(1, action="policy.create", object_type="policy", object_label="chat-free", after={"name": "x"}, reason="new")
    entry(2, actor="deploy-key", channel="api", action="token.revoke", object_label="web", request_id="req-17")
    entry(3, action="policy.undo", object_type="policy", object_label="search")


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", [1, 2, 3]),
        ("actor__icontains=deploy", [2]),
        ("actor__icontains=nobody", []),
        ("deed=created", [1]),
        ("deed=revoked", [2]),
        ("deed=changed", [3]),
        ("deed=nonsense", []),
        ("type=policy", [1, 3]),
        ("type=policy&deed=undone", [3]),
        ("channel__exact=api", [2]),
        ("q=chat-free", [1]),
        ("q=req-17", [2]),
        ("at_from=2026-11-24T12:02", [2, 3]),
        ("at_from=2026-11-24T12:02&at_to=2026-11-24T12:02", [2]),
        ("at_from=yesterday", []),
        ("object_type=token&object_id=tok_1", [2]),
    ],
)
def test_filters(as_ann, three, query, numbers):
    """By person, in plain words, by object and by time. A word that is none finds nothing."""
    assert found(as_ann.get(f"{LIST}?{query}")) == [f"aud_{number:06d}" for number in numbers]


@pytest.mark.parametrize(
    ("number", "title"), [(1, "Policy chat-free created"), (2, "Token web revoked"), (3, "Policy search changed back")]
)
def test_the_title_of_an_entry_says_what_happened(as_ann, three, number, title):
    """In the words of the list, and not in those of the program."""
    page = as_ann.get(f"{LIST}aud_5F{number:06d}/change/").content.decode()

    assert re.search(rf"<title>\s*{title} \|", page)
    assert re.search(rf'truncate tracking-tight">{title}</span>', page)
    assert not re.search(r"(policy|token)\.(create|revoke|undo)", page)


def exported(client, form: str, query: str = "") -> str:
    response = client.get(f"{LIST}export.{form}?{query}")
    assert response.status_code == 200
    assert response["Content-Disposition"] == f'attachment; filename="audit.{form}"'
    return b"".join(response.streaming_content).decode()


def test_the_export_has_what_the_list_has(as_ann, three):
    """As CSV and as lines of JSON, with the place in the chain."""
    chain.seal(LATER)

    rows = list(csv.DictReader(io.StringIO(exported(as_ann, "csv", "type=policy"))))
    lines = [json.loads(line) for line in exported(as_ann, "jsonl", "type=policy").splitlines()]

    assert [row["id"] for row in rows] == [line["id"] for line in lines] == ["aud_000003", "aud_000001"]
    assert json.loads(rows[1]["after"]) == lines[1]["after"] == {"name": "x"}
    assert [(row["number"], row["at"]) for row in rows] == [
        ("3", "2026-11-24T12:03:00.000000+00:00"),
        ("1", "2026-11-24T12:01:00.000000+00:00"),
    ]
    assert lines[1]["digest"] == rows[1]["digest"]


def test_a_formula_is_none_in_a_spreadsheet(as_ann, entry):
    """Who names a token chooses what an auditor opens."""
    entry(1, object_label="=cmd()")

    assert "'=cmd()" in exported(as_ann, "csv")


def test_the_export_is_not_read_at_once(as_ann, three, django_assert_num_queries):
    """A million entries are a file, and not a million rows in memory."""
    response = as_ann.get(f"{LIST}export.jsonl")

    assert response.streaming
    with django_assert_num_queries(2):
        assert len(list(response.streaming_content)) == 3


def test_the_export_reads_some_entries_at_a_time(as_ann, entry, monkeypatch):
    """Each of them once, also those of one instant, and no more than the next lines need."""
    monkeypatch.setattr(export, "AT_ONCE", 2)
    first_three = [entry(number) for number in (1, 2, 3)]
    for number in (4, 5, 6):
        values = {**model_to_dict(first_three[-1]), "id": f"aud_{number:06d}", "at": first_three[-1].at}
        AuditEntry.objects.create(**values)

    lines = export.json_lines(AuditEntry.objects.all())
    with CaptureQueriesContext(connection) as first:
        newest = json.loads(next(lines))["id"]
    rest = [json.loads(line)["id"] for line in lines]

    assert [newest, *rest] == [f"aud_{number:06d}" for number in (6, 5, 4, 3, 2, 1)]
    assert [query["sql"].count("LIMIT 2") for query in first.captured_queries] == [1, 0]


@pytest.mark.parametrize(("address", "status"), [("export.xml", 404), ("export.csv?nonsense=1", 400)])
def test_a_wrong_export_is_refused(as_ann, address, status):
    """A file must not pass for what was not asked."""
    assert as_ann.get(LIST + address, follow=True).status_code == status


def test_an_entry_leads_to_its_object_and_revision(as_ann, store):
    """And from the history of the object to the undo of one change."""
    limit = LimitFactory(policy__slug="chat-free", name="per-minute", quota=25)
    before = limit.policy.as_record()
    with change(actor=ANN) as tx:
        limit.policy.limits.update(quota=2)
        tx.updated(type(limit.policy).objects.get(), before)

    page = as_ann.get(f"/admin/policies/policy/{limit.policy_id}/history/", follow=True).content.decode()

    assert f'href="/admin/policies/policy/{limit.policy_id.replace("_", "_5F")}/change/">policy chat-free' in page
    assert 'href="/admin/publishing/revision/1/change/">revision 1' in page
    assert f'href="/admin/publishing/revision/1/undo/?change={tx.id}">Undo this change' in page
    assert "per-minute: 25 requests per minute → 2 requests per minute" in page


def test_a_member_reads_and_exports_only_the_own_projects(client, store):
    """Not even how many others there are."""
    ours, theirs = ProjectFactory(slug="chat"), ProjectFactory(slug="search")
    for project in (ours, theirs):
        with change(actor=ANN, reason=f"for {project}") as tx:
            tx.created(project)
    user = UserFactory()
    MembershipFactory(user=user, project=ours, role="viewer")
    client.force_login(user)
    own = AuditEntry.objects.get(object_id=ours.pk)
    foreign = AuditEntry.objects.get(object_id=theirs.pk)

    assert found(client.get(LIST)) == [own.pk]
    assert [json.loads(line)["id"] for line in exported(client, "jsonl").splitlines()] == [own.pk]
    assert found(client.get(f"{LIST}?q=search")) == []
    address = f"{LIST}{foreign.pk.replace('_', '_5F')}/change/"
    assert "for search" not in client.get(address, follow=True).content.decode()
    assert "Undo this change" not in client.get(LIST).content.decode()


def test_a_change_of_the_admin_has_the_id_of_its_request(as_ann, store):
    """As one of REST has, so that the log lines of both can be found."""
    form = {"slug": "chat", "name": "Chat", "active": "on", "partition_cap": 100, "time_zone": "UTC"}

    as_ann.post("/admin/projects/project/add/", form, headers={"X-Request-Id": "req-of-the-proxy"})
    as_ann.post("/admin/projects/project/add/", {**form, "slug": "other"})

    ids = list(AuditEntry.objects.order_by("id").values_list("request_id", flat=True))
    assert ids[0] == "req-of-the-proxy"
    assert re.fullmatch(r"req_[0-9a-f]{24}", ids[1])


def test_no_secret_gets_into_the_audit(as_ann, store, api):
    """Neither that of a token or key, nor its digest, nor a password or its hash."""
    project = ProjectFactory(slug="chat")
    made = api("POST", "projects/chat/tokens", {"name": "web"}).json()
    rotated = api("POST", f"tokens/{made['id']}/rotate", {"overlap_seconds": 0}).json()
    page = as_ann.post("/admin/projects/managementkey/add/", {"name": "ci", "scopes": ["*"], "all_projects": "on"})
    assert page.status_code == 200, page.url
    assert "secret" in page.context, page.context["adminform"].errors
    passwords = {"password1": "hunter2hunter2!", "password2": "hunter2hunter2!", "usable_password": "true"}
    as_ann.post("/admin/auth/user/add/", {"username": "bob", **passwords})
    token = TokenFactory(project=project)
    with change(actor=ANN) as tx:
        tx.delete(token)

    text = "".join(exported(as_ann, "jsonl"))

    secrets = [made["secret"], rotated["secret"], token.secret, page.context["secret"], "hunter2"]
    secrets += [token.digest, ManagementKey.objects.get(name="ci").digest, User.objects.get(username="bob").password]
    assert AuditEntry.objects.filter(object_label__startswith="bob").exists()
    assert not [secret for secret in secrets if secret in text]


@pytest.mark.parametrize("count", [1, 20])
def test_a_list_needs_few_statements(as_ann, entry, django_assert_max_num_queries, count):
    """However many objects its entries name."""
    for minute in range(count):
        project = ProjectFactory()
        entry(minute, object_type="project", object_id=project.pk, object_label=project.slug, action="project.update")

    with django_assert_max_num_queries(16):
        assert len(found(as_ann.get(LIST))) == count


def test_an_entry_says_what_was_changed_in_the_words_of_the_pages(as_ann, entry):
    """Neither the names of columns nor ids, where there is a name. The export has the record as it is."""
    project, token = ProjectFactory(slug="chat"), TokenFactory(name="kestrel")
    limit = {"name": "per-minute", "algorithm": "sliding_window", "quota": 25, "window_seconds": 60}
    before = {"project": None, "is_global": False, "token": token.pk, "ends_at": None, "limits": [limit]}
    changed = {**limit, "quota": 25_000, "window_seconds": 3600, "mode": "shadow", "on_store_failure": "deny"}
    after = {**before, "project": project.pk, "is_global": True, "ends_at": "2026-11-27T17:00:00+00:00"}
    entry(1, action="policy.update", object_type="policy", before=before, after={**after, "limits": [changed]})

    page = as_ann.get(f"{LIST}aud_000001/change/").content.decode()

    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", page)
    assert len(rows) == 7  # in the order of the record, which PostgreSQL makes anew
    assert set(rows) == {
        ("Project", "all projects", "chat"),
        ("Applies to", "its tokens and projects", "every request"),
        ("Ends", "never", "2026-11-27 17:00 UTC"),
        ("Per-minute: Quota", "25 requests", "25,000 requests"),
        ("Per-minute: Window", "1 minute", "1 hour"),
        ("Per-minute: Mode", "enforced", "shadow (counted, never denied)"),
        ("Per-minute: If the store is unavailable", "each process enforces its share", "every request is denied"),
    }
    assert '"quota": 25000' in exported(as_ann, "jsonl").replace('\\"', '"')
