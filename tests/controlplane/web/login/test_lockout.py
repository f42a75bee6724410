"""Guessing passwords is slow, from one address and behind a proxy, and nobody locks others out."""

from datetime import timedelta

import pytest
from axes.models import AccessAttempt
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone
from django.utils.html import strip_tags

from controlplane.changes.audit.models import AuditEntry

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery staple"
PROXY = "10.1.2.3"


@pytest.fixture(autouse=True)
def ann() -> None:
    get_user_model().objects.create_superuser("ann", password=PASSWORD)


@pytest.fixture
def proxy(settings) -> None:
    settings.TRUSTED_PROXIES = ["10.0.0.0/8"]


def log_in(password: str, address: str, *, name: str = "ann", peer: str = PROXY):
    """Send the form through a proxy, which appends the address of its client, as they all do."""
    headers = {"X-Forwarded-For": address}
    return Client(REMOTE_ADDR=peer, headers=headers).post("/admin/login/", {"username": name, "password": password})


def test_a_stranger_locks_nobody_else_out(proxy):
    """Two clients behind one proxy: one guesses and is locked out, the other logs in."""
    statuses = [log_in("wrong", "6.6.6.6").status_code for _ in range(6)]

    assert statuses == [200, 200, 200, 200, 429, 429]
    assert log_in(PASSWORD, "6.6.6.6").status_code == 429
    assert log_in(PASSWORD, "1.1.1.1").status_code == 302


def test_an_address_that_a_client_invents_counts_for_nothing(proxy):
    """Only what the trusted proxy appended is believed."""
    for number in range(5):
        log_in("wrong", f"1.1.1.{number}, 6.6.6.6")

    assert log_in(PASSWORD, "9.9.9.9, 6.6.6.6").status_code == 429


def test_without_a_trusted_proxy_the_header_is_not_read():
    """A client cannot escape by inventing addresses."""
    for number in range(5):
        log_in("wrong", f"1.1.1.{number}", peer="6.6.6.6")

    assert log_in(PASSWORD, "9.9.9.9", peer="6.6.6.6").status_code == 429


def test_one_password_cannot_be_tried_with_every_name(proxy):
    """Twenty failures lock an address out, whatever the names were, and no other address."""
    statuses = [log_in("Spring2026", "6.6.6.6", name=f"user{number}").status_code for number in range(30)]

    assert statuses == [200] * 19 + [429] * 11
    assert log_in(PASSWORD, "6.6.6.6").status_code == 429
    assert log_in(PASSWORD, "1.1.1.1").status_code == 302


def test_a_success_does_not_reset_the_count_of_an_address(proxy):
    """Whoever has an account cannot try passwords for ever."""
    for number in range(19):
        log_in("Spring2026", "6.6.6.6", name=f"user{number}")
    assert log_in(PASSWORD, "6.6.6.6").status_code == 302

    assert log_in("Spring2026", "6.6.6.6", name="user19").status_code == 429


def test_an_ipv6_client_is_its_network(proxy):
    """It has 2**64 addresses, so each guess could come from another one."""
    for number in range(5):
        log_in("wrong", f"2001:db8:1:2::{number}")

    assert log_in(PASSWORD, "2001:db8:1:2:ffff::1").status_code == 429
    assert log_in(PASSWORD, "2001:db8:1:3::1").status_code == 302


def test_the_page_says_how_long_and_leads_back(proxy):
    """Somebody who mistyped the password knows when to come back."""
    for _ in range(5):
        page = log_in("wrong", "6.6.6.6")

    assert page["Retry-After"] == "900"
    assert "are refused for 15 minutes." in page.content.decode()
    assert 'href="/admin/"' in page.content.decode()


def test_trying_on_does_not_make_it_longer(proxy):
    """The time that the page names is kept."""
    for _ in range(5):
        log_in("wrong", "6.6.6.6")
    before = AccessAttempt.objects.get().attempt_time

    log_in("wrong", "6.6.6.6")

    assert AccessAttempt.objects.get().attempt_time == before


@pytest.mark.parametrize(("age", "status"), [(14, 429), (15, 302)])
def test_a_lock_out_ends(proxy, age, status):
    """After the fifteen minutes, and not before."""
    for _ in range(5):
        log_in("wrong", "6.6.6.6")
    AccessAttempt.objects.update(attempt_time=timezone.now() - timedelta(minutes=age))

    assert log_in(PASSWORD, "6.6.6.6").status_code == status


@pytest.mark.parametrize(("trusted", "warned"), [([], True), (["10.0.0.0/8"], False)])
def test_a_lock_out_of_a_proxy_says_how_to_end_it(settings, caplog, trusted, warned):
    """Without the setting, one stranger locks out everybody behind the proxy, and only the log can say why."""
    settings.TRUSTED_PROXIES = trusted
    for _ in range(5):
        log_in("wrong", "6.6.6.6")

    assert any("add it to SLUICEGATE_TRUSTED_PROXIES" in line for line in caplog.messages) == warned


@pytest.fixture
def states_in_the_admin():
    """The states of the failed log-ins, as an administrator sees them who logged in before."""
    client = Client()
    client.force_login(get_user_model().objects.get(username="ann"))

    def read() -> list[str]:
        page = client.get("/admin/axes/accessattempt/")
        assert "To let an address log in again that is locked out for all names" in page.content.decode()
        shown = page.context["cl"]
        return [strip_tags(shown.model_admin.state(attempt)) for attempt in shown.result_list]

    return read


def test_the_admin_says_that_an_address_is_locked_out(proxy, states_in_the_admin):
    """Each of its names failed once, so deleting the entry of one name would help nobody."""
    for number in range(20):
        log_in("Spring2026", "6.6.6.6", name=f"user{number}")
    log_in("wrong", "1.1.1.1")

    assert sorted(states_in_the_admin()) == ["1 of 5 failures", *["address locked out, 20 failures"] * 20]
    AccessAttempt.objects.filter(ip_address="6.6.6.6").delete()
    assert log_in(PASSWORD, "6.6.6.6").status_code == 302


@pytest.mark.parametrize("way", ["page", "list"])
def test_whoever_ends_a_lock_out_is_in_the_audit(proxy, way):
    """With the reason, the name and the address, and without what was typed in place of a name."""
    for name in ("ann", "my-secret-password"):
        log_in("wrong", "6.6.6.6", name=name)
    rows = {row.username: row.pk for row in AccessAttempt.objects.all()}
    client = Client()
    client.force_login(get_user_model().objects.get(username="ann"))

    sent = {"post": "yes", "change_reason": "typing error"}
    if way == "page":
        for pk in rows.values():
            assert client.post(f"/admin/axes/accessattempt/{pk}/delete/", sent).status_code == 302
    else:
        chosen = {"action": "delete_selected", "_selected_action": list(rows.values())}
        client.post("/admin/axes/accessattempt/", {**chosen, **sent})

    assert not AccessAttempt.objects.exists()
    entries = AuditEntry.objects.all()
    assert {(entry.action, entry.reason, entry.before["username"], entry.before["address"]) for entry in entries} == {
        ("accessattempt.delete", "typing error", name, "6.6.6.6") for name in ("ann", "of no account")
    }
    assert "my-secret-password" not in str(list(entries.values()))


def test_the_admin_says_that_a_lock_out_is_over(proxy, states_in_the_admin):
    """The rows stay until the next log-in, and lock nobody out."""
    for _ in range(5):
        log_in("wrong", "6.6.6.6")
    assert states_in_the_admin() == ["locked out"]
    AccessAttempt.objects.update(attempt_time=timezone.now() - timedelta(minutes=15))

    assert states_in_the_admin() == ["over, 5 failures"]


def from_browser(browser: Client, password: str, *, name: str = "ann"):
    browser.post("/admin/logout/")
    return browser.post("/admin/login/", {"username": name, "password": password}, REMOTE_ADDR=PROXY)


@pytest.fixture
def known() -> Client:
    """A browser in which Ann has logged in before, behind a proxy that is not declared."""
    browser = Client()
    assert from_browser(browser, PASSWORD).status_code == 302
    return browser


def test_strangers_do_not_lock_a_known_browser_out(known):
    """Behind such a proxy, everybody has its address."""
    for number in range(25):
        log_in("Spring2026", "6.6.6.6", name=f"user{number}")
    for _ in range(5):
        log_in("wrong", "6.6.6.6")

    assert log_in(PASSWORD, "6.6.6.6").status_code == 429
    assert from_browser(known, PASSWORD).status_code == 302


def test_a_known_browser_guesses_no_more_than_others(known):
    """It has a count of its own, which locks nobody else out."""
    statuses = [from_browser(known, "wrong").status_code for _ in range(5)]

    assert statuses == [200, 200, 200, 200, 429]
    assert from_browser(known, PASSWORD).status_code == 429
    assert log_in(PASSWORD, "6.6.6.6").status_code == 302


def test_a_browser_is_known_for_one_name_only(known):
    """Whoever has an account does not get more guesses at the passwords of others."""
    get_user_model().objects.create_superuser("bob", password=PASSWORD)
    for _ in range(5):
        log_in("wrong", "6.6.6.6", name="bob")

    assert from_browser(known, PASSWORD, name="bob").status_code == 429


@pytest.mark.parametrize("cookie", ["", "x", "e30:1abc:xyz", "é"])
def test_an_invented_cookie_makes_no_browser_known(cookie):
    for _ in range(5):
        log_in("wrong", "6.6.6.6")
    browser = Client()
    browser.cookies["sluicegate_browser"] = cookie

    assert from_browser(browser, PASSWORD).status_code == 429


def test_the_cookie_of_a_browser_names_nobody(known, settings):
    """It is no session, and scripts do not read it."""
    cookie = known.cookies["sluicegate_browser"]

    assert "ann" not in cookie.value
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/admin/")
    settings.HTTPS = True
    assert from_browser(known, PASSWORD).cookies["sluicegate_browser"]["secure"]


def test_the_admin_names_a_known_browser(known, states_in_the_admin):
    from_browser(known, "wrong")

    assert states_in_the_admin() == ["1 of 5 failures"]
    client = Client()
    client.force_login(get_user_model().objects.get(username="ann"))
    assert "a known browser" in client.get("/admin/axes/accessattempt/").content.decode()
