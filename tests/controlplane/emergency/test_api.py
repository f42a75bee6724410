"""Suspension over REST."""

import pytest

from controlplane.emergency.models import Suspension
from controlplane.policies.models import AuditEntry
from tests.factories import TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("path", ["tokens/{token}", "projects/{project}"])
def test_a_token_and_a_project_are_suspended_and_resumed(api, store, path):
    """Repeating either changes nothing. The reason of the header is kept."""
    token = TokenFactory(project__slug="chat")
    path = path.format(token=token.pk, project="chat")

    states = [
        api("POST", f"{path}/{deed}", Sluicegate_Reason="leaked?").json()["suspended"]
        for deed in ("suspend", "suspend", "resume", "resume")
    ]

    assert states == [True, True, False, False]
    assert not Suspension.objects.exists()
    kind = path.partition("s/")[0]
    entries = AuditEntry.objects.order_by("id").values_list("action", "reason")
    assert list(entries) == [(f"{kind}.suspend", "leaked?"), (f"{kind}.resume", "leaked?")]


def test_a_suspension_has_no_body(api, store):
    """A field in it is refused, and nothing is suspended."""
    answer = api("POST", f"tokens/{TokenFactory().pk}/suspend", {"until": "tomorrow"})

    assert answer.status_code == 400
    assert not Suspension.objects.exists()
