"""From where a management key may be used."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.keys.models import ManagementKey
from tests.factories import ManagementKeyFactory

pytestmark = pytest.mark.django_db


def answered(client, key: ManagementKey, peer: str, **headers: str) -> tuple[int, str]:
    sent = {"Authorization": f"Bearer {key.secret}", **headers}
    response = client.get("/api/v1/projects", headers=sent, REMOTE_ADDR=peer)
    return response.status_code, response.json().get("code", "")


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("192.0.2.7", (200, "")),
        ("::ffff:192.0.2.7", (200, "")),
        ("2001:db8::7", (200, "")),
        ("192.0.3.7", (403, "network_not_allowed")),
        ("2001:db9::7", (403, "network_not_allowed")),
        ("", (403, "network_not_allowed")),  # a Unix socket
    ],
)
def test_a_key_is_refused_from_elsewhere(client, peer, expected):
    """Both versions of IP, and an unknown address is elsewhere."""
    key = ManagementKeyFactory(networks=["192.0.2.0/24", "2001:db8::/32"])

    assert answered(client, key, peer) == expected


def test_a_key_without_networks_is_used_from_everywhere(client):
    """Also over a Unix socket."""
    assert [answered(client, ManagementKeyFactory(), peer)[0] for peer in ("203.0.113.1", "")] == [200, 200]


@pytest.mark.parametrize(
    ("peer", "forwarded", "status"),
    [
        ("10.0.0.1", "192.0.2.7", 200),
        ("10.0.0.1", "203.0.113.1", 403),
        ("10.0.0.1", "192.0.2.7, 203.0.113.1", 403),  # only the last hop was written by the trusted proxy
        ("203.0.113.1", "192.0.2.7", 403),  # anyone can send the header
    ],
)
def test_only_a_trusted_proxy_says_who_the_client_is(client, settings, peer, forwarded, status):
    """As for the limits of log-ins."""
    settings.TRUSTED_PROXIES = ["10.0.0.0/8"]
    key = ManagementKeyFactory(networks=["192.0.2.0/24"])

    assert answered(client, key, peer, **{"X-Forwarded-For": forwarded})[0] == status


def test_a_list_that_was_emptied_by_hand_allows_nobody(client):
    """An empty list never means everywhere."""
    key = ManagementKeyFactory(networks=["192.0.2.0/24"])
    ManagementKey.objects.update(networks=[])

    assert answered(client, key, "192.0.2.7") == (403, "network_not_allowed")


def test_a_refused_use_is_no_use(client):
    """The page of the key does not show it as used."""
    answered(client, ManagementKeyFactory(networks=["192.0.2.0/24"]), "203.0.113.1")

    assert ManagementKey.objects.get().last_used_at is None


@pytest.mark.parametrize("written", [["office"], ["192.0.2.7/24"], [None], [7], "0.0.0.0/0", {"0.0.0.0/0": 1}, 7, True])
def test_a_list_that_was_damaged_by_hand_allows_nobody(client, api, caplog, written):
    """The log and the audit say why, and every page of the key can be read, so that somebody can mend it."""
    damaged = ManagementKeyFactory(name="ci")
    ManagementKey.objects.filter(pk=damaged.pk).update(networks=written)

    assert [answered(client, damaged, peer) for peer in ("192.0.2.7", "")] == [(403, "network_not_allowed")] * 2

    assert "its networks are not valid" in caplog.text
    (entry,) = AuditEntry.objects.filter(object_id=damaged.pk)  # of two refusals
    assert (entry.action, "not valid" in entry.reason) == ("managementkey.malformed", True)
    shown = api("GET", f"management-keys/{damaged.pk}").json()["networks"]
    assert isinstance(shown, list)
    assert shown
    assert all(isinstance(one, str) for one in shown)
    own = ManagementKeyFactory(networks=["127.0.0.0/8"])
    refused = client.patch(
        f"/api/v1/management-keys/{damaged.pk}",
        {"name": "x"},
        content_type="application/json",
        headers={"Authorization": f"Bearer {own.secret}"},
    )
    assert (refused.status_code, refused.json()["code"]) == (403, "exceeds_own_key")
    mended = api("PATCH", f"management-keys/{damaged.pk}", {"networks": ["192.0.2.0/24"]})
    assert mended.status_code == 200
    assert answered(client, damaged, "192.0.2.7") == (200, "")


def test_the_admin_shows_a_damaged_list(admin_client):
    """As it was written."""
    key = ManagementKeyFactory(name="ci")
    ManagementKey.objects.filter(pk=key.pk).update(networks=[7, "office"])

    page = admin_client.get("/admin/projects/managementkey/")

    assert page.status_code == 200
    assert "7, office" in page.text
