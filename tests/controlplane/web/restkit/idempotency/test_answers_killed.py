"""A process that is killed after the commit of a batch, before its client has the response."""

import json
from collections import Counter

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import OutboxEntry
from tests.controlplane.conftest import at_once
from tests.factories import ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

COUNT = 30
BODY = {"items": [{"project": "chat", "name": f"t{number}"} for number in range(COUNT)]}
CODE = """
import os, signal
from django.test import Client
from controlplane.releases.publishing import publisher

publish = publisher.publish_promptly
def killed():
    publish() if {published} else None
    os.kill(os.getpid(), signal.SIGKILL)

publisher.publish_promptly = killed
headers = {{"Authorization": "Bearer {secret}", "Idempotency-Key": "a"}}
Client(SERVER_NAME="localhost").post("/api/v1/tokens/batch", {body}, content_type="application/json", headers=headers)
"""


@pytest.mark.parametrize("published", [False, True])
def test_each_item_is_made_once(web, key, store, run_python, published):
    """Whether or not it was published, all who repeat it at once get one response, and there is one publication."""
    ProjectFactory(slug="chat")
    code = CODE.format(published=published, secret=key.secret, body=repr(json.dumps(BODY)))
    assert run_python(code).wait(60) == -9
    assert Token.objects.count() == COUNT

    def until_answered() -> tuple[int, str, str]:
        while (answer := web("POST", "tokens/batch", BODY, key=key, Idempotency_Key="a")).status_code in (409, 503):
            pass
        return answer.status_code, answer.headers["Idempotency-Replayed"], json.dumps(answer.body)

    answers = set(at_once([until_answered] * 20))
    publisher.publish_pending()

    ((status, replayed, body),) = answers
    assert (status, replayed) == (201, "true")
    assert {one["secret"] for one in json.loads(body)["results"]} == {None}
    assert set(Counter(Token.objects.values_list("name", flat=True)).values()) == {1}
    assert AuditEntry.objects.filter(action="token.create").count() == COUNT
    assert list(OutboxEntry.objects.values_list("revision", flat=True).distinct().order_by("revision")) == [1]
