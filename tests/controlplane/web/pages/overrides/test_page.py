"""What the form of an override asks of a limit that is chosen."""

import pytest

from tests.factories import LimitFactory, MembershipFactory, PolicyFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db

ADDRESS = "/admin/policies/override/unit/"


def test_only_limits_that_the_user_sees_are_told(client, admin_client):
    money = LimitFactory(unit="micros", policy=PolicyFactory(project=ProjectFactory(slug="a")))
    calls = LimitFactory(policy=PolicyFactory(project=ProjectFactory(slug="b")))
    member = UserFactory(username="eve", is_staff=True)
    MembershipFactory(user=member, project=money.policy.project)

    assert admin_client.get(f"{ADDRESS}?limit={money.pk}").json() == {"is_money": True}
    assert admin_client.get(f"{ADDRESS}?limit={calls.pk}").json() == {"is_money": False}
    assert [admin_client.get(ADDRESS + query).status_code for query in ("", "?limit=none")] == [404, 404]
    assert client.get(f"{ADDRESS}?limit={money.pk}").status_code == 302
    client.force_login(member)
    assert client.get(f"{ADDRESS}?limit={money.pk}").json() == {"is_money": True}
    assert client.get(f"{ADDRESS}?limit={calls.pk}").status_code == 404
