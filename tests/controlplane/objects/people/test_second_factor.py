"""The second factor: an authenticator, recovery codes, and what happens without them."""

import re

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django_otp.oath import totp
from django_otp.plugins.otp_static.models import StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.people import second_factor
from controlplane.web.login.second_factor_gate import OPEN
from tests.controlplane.objects.people.addresses import address, patterns, row_of
from tests.controlplane.objects.people.world import installation, tenant
from tests.controlplane.pages import html_of
from tests.factories import UserFactory

pytestmark = pytest.mark.django_db

OWN, CODE, INDEX = "/admin/second-factor/", "/admin/second-factor/code/", "/admin/"
PASSWORD = "correct horse battery staple"


@pytest.fixture
def required(settings) -> None:
    settings.REQUIRE_SECOND_FACTOR = True


@pytest.fixture
def eve() -> User:
    user = UserFactory(username="eve", operator=True)
    user.set_password(PASSWORD)
    user.save()
    return user


@pytest.fixture
def session(client: Client, eve: User) -> Client:
    """A log-in with the password only."""
    client.post("/admin/login/", {"username": "eve", "password": PASSWORD})
    return client


def code_of(key: str) -> str:
    """Return the present code. A code that was used is made usable again, since no test waits for the next."""
    TOTPDevice.objects.update(last_t=-1, throttling_failure_timestamp=None, throttling_failure_count=0)
    return f"{totp(bytes.fromhex(key)):06d}"


@pytest.fixture
def device_key(eve: User) -> str:
    """The key of Eve's authenticator, which she has already."""
    return TOTPDevice.objects.create(user=eve, name="authenticator").key


@pytest.fixture
def recovery(eve: User, device_key: str) -> list[str]:
    return second_factor.new_recovery_codes(eve)


def enrolled(session: Client) -> list[str]:
    """Add an authenticator as a browser does, and return the recovery codes."""
    shown = re.search(r'aria-label="Key">([A-Z2-7 ]+)<', html_of(session.get(OWN)))[1]
    key = session.session["second_factor_key"]
    assert shown == second_factor.readable(key)
    response = session.post(OWN, {"code": code_of(key)})
    return re.findall(r"<li><code>([a-z0-9-]+)</code>", html_of(response))


def actions() -> list[tuple[str, str]]:
    return list(AuditEntry.objects.order_by("id").values_list("action", "actor"))


def test_without_the_setting_nobody_is_asked(session):
    assert session.get(INDEX).status_code == 200


def test_if_it_is_required_every_page_leads_to_the_enrolment(session, required):
    """Until then the password opens nothing."""
    for page in (INDEX, "/admin/projects/token/", "/admin/password_change/", "/admin/nosuch/"):
        response = session.get(page)
        assert (response.status_code, response.url) == (302, OWN)
    page = session.get(OWN)
    assert "This installation asks everybody" in html_of(page)
    assert "no-store" in page["Cache-Control"]


def test_an_authenticator_is_added_by_its_first_code(session, required, eve):
    """The page then shows recovery codes once. Of them and of the code, SQL and the audit hold nothing."""
    codes = enrolled(session)

    assert len(set(codes)) == 10
    assert session.get(INDEX).status_code == 200
    assert actions() == [("user.second_factor", "eve")]
    entry = AuditEntry.objects.get()
    assert (entry.before["second_factor"], entry.after["second_factor"]) == (False, True)
    assert entry.request_id
    kept = set(StaticToken.objects.values_list("token", flat=True))
    assert len(kept) == 10
    assert not kept & {code.replace("-", "") for code in codes}
    assert codes[0] not in html_of(session.get(OWN))


@pytest.mark.parametrize("code", ["000000", "", "abc", "1234567", "１２３４５６", "\x00"])
def test_a_wrong_first_code_adds_nothing(session, required, code):
    session.get(OWN)

    response = session.post(OWN, {"code": code})

    assert response.status_code in (200, 400)
    assert not TOTPDevice.objects.exists()
    assert session.get(INDEX).status_code == 302
    assert actions() == []


def test_whoever_has_an_authenticator_is_asked_after_the_password(session, device_key):
    """Whether it is required or not. The code then leads to where the user wanted to go."""
    asked = session.get("/admin/projects/token/?q=a")
    assert (asked.status_code, asked.url) == (302, f"{CODE}?next=%2Fadmin%2Fprojects%2Ftoken%2F%3Fq%3Da")
    assert session.get(OWN).url.startswith(CODE)
    page = session.get(asked.url)
    assert "Projects" not in html_of(page)

    done = session.post(CODE, {"code": code_of(device_key), "next": "/admin/projects/token/?q=a"})

    assert (done.status_code, done.url) == (302, "/admin/projects/token/?q=a")
    assert session.get(done.url).status_code == 200


def test_the_password_alone_opens_no_address(session, device_key):
    """Of the whole URL configuration, however it is asked."""
    world = {**installation(), **tenant("alpha").rows}
    for pattern in patterns():
        if pattern.name in (*OPEN, "first-account"):
            continue
        url = address(pattern, row_of(pattern, world))
        for response in (session.get(url), session.post(url, {"post": "yes"})):
            assert response.url.startswith(CODE), pattern.name


def test_a_code_leads_to_no_other_server(session, device_key):
    assert session.post(CODE, {"code": code_of(device_key), "next": "https://evil.example/"}).url == INDEX


def test_the_session_gets_a_new_key_with_the_code(session, device_key):
    """A copy of the former one stays outside."""
    former = session.cookies["sessionid"].value
    session.post(CODE, {"code": code_of(device_key)})
    copy = Client()
    copy.cookies["sessionid"] = former

    assert session.cookies["sessionid"].value != former
    assert copy.get(INDEX).status_code == 302


def test_a_code_works_once(session, device_key):
    code = code_of(device_key)
    session.post(CODE, {"code": code})
    session.post("/admin/logout/")
    session.post("/admin/login/", {"username": "eve", "password": PASSWORD})

    assert "This code is not right." in html_of(session.post(CODE, {"code": code}))
    assert session.get(INDEX).status_code == 302


def test_after_a_wrong_code_the_next_one_waits(session, device_key):
    """Longer after each. So nobody can try all of them."""
    wrong = f"{(int(code_of(device_key)) + 1) % 1_000_000:06d}"
    assert "This code is not right." in html_of(session.post(CODE, {"code": wrong}))
    TOTPDevice.objects.update(throttling_failure_count=10)

    page = html_of(session.post(CODE, {"code": f"{totp(bytes.fromhex(device_key)):06d}"}))

    assert re.search(r"Wait 5\d\d seconds after a wrong code", page)
    assert session.get(INDEX).status_code == 302
    assert session.post(CODE, {"code": code_of(device_key)}).status_code == 302


def test_wrong_codes_are_failed_log_ins(session, device_key):
    """Operators see them, and after some the address is locked out."""
    for _ in range(4):
        code_of(device_key)
        assert session.post(CODE, {"code": "not-a-code"}).status_code == 200
    code_of(device_key)

    assert session.post(CODE, {"code": "not-a-code"}).status_code == 429


def test_a_recovery_code_works_once_however_it_is_typed(session, recovery):
    assert session.post(CODE, {"code": recovery[0].upper().replace("-", " ")}).status_code == 302
    assert session.get(INDEX).status_code == 200
    assert "9 recovery codes are left" in html_of(session.get(OWN))
    session.post("/admin/logout/")
    session.post("/admin/login/", {"username": "eve", "password": PASSWORD})

    assert session.post(CODE, {"code": recovery[0]}).status_code == 200
    assert session.get(INDEX).status_code == 302


def test_new_recovery_codes_end_the_former_ones(session, device_key, recovery):
    session.post(CODE, {"code": code_of(device_key)})

    page = html_of(session.post(OWN, {"code": code_of(device_key)}))

    fresh = re.findall(r"<li><code>([a-z0-9-]+)</code>", page)
    assert len(fresh) == 10
    assert not set(fresh) & set(recovery)
    assert actions() == [("user.recovery_codes", "eve")]
    user = User.objects.get()
    assert second_factor.verify(user, recovery[1]) is None


def test_changes_of_the_own_factor_ask_for_a_fresh_code(session, device_key):
    """Whoever finds an open session does not take it over."""
    session.post(CODE, {"code": code_of(device_key)})
    code_of(device_key)

    assert "This code is not right." in html_of(session.post(OWN, {"code": "000000x", "remove": "yes"}))
    assert TOTPDevice.objects.exists()
    session.post(OWN, {"code": code_of(device_key), "remove": "yes"})

    assert not TOTPDevice.objects.exists()
    assert actions() == [("user.second_factor", "eve")]


def test_the_key_of_a_factor_is_shown_to_nobody_later(session, device_key):
    """Neither on the own page nor on one of operators."""
    session.post(CODE, {"code": code_of(device_key)})

    for page in (OWN, "/admin/auth/user/", f"/admin/auth/user/{User.objects.get().pk}/change/"):
        text = html_of(session.get(page))
        assert device_key not in text
        assert second_factor.readable(device_key) not in text
    assert session.get("/admin/otp_totp/totpdevice/").status_code == 404


def test_an_operator_resets_the_factor_of_somebody_else(client, eve, device_key, recovery):
    """With a reason, and not the own one, which asks for a code."""
    ann = UserFactory(username="ann", operator=True)
    client.force_login(ann)
    url = f"/admin/auth/user/{eve.pk}/reset_second_factor/"

    assert client.post(url, {"_form_submitted": "on"}).status_code == 200
    assert TOTPDevice.objects.exists()
    client.post(url, {"_form_submitted": "on", "reason": "phone lost"})

    assert not TOTPDevice.objects.exists()
    assert not StaticToken.objects.exists()
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.reason) == ("user.second_factor_reset", "ann", "phone lost")
    own = f"/admin/auth/user/{ann.pk}/reset_second_factor/"
    assert client.post(own, {"_form_submitted": "on", "reason": "x"}).status_code == 403


def test_a_session_ends_with_the_factor_that_opened_it(session, device_key, required, eve):
    """After a reset, the account adds a new one."""
    session.post(CODE, {"code": code_of(device_key)})
    assert session.get(INDEX).status_code == 200

    second_factor.remove(eve)

    assert session.get(INDEX).url == OWN


def test_the_last_operator_is_let_in_by_a_command(eve, device_key, capsys):
    call_command("reset_second_factor", "eve", reason="phone lost")

    assert second_factor.device_of(eve) is None
    assert actions() == [("user.second_factor_reset", "reset_second_factor")]
    assert "eve logs in without a second factor now" in capsys.readouterr().out
    for name, error in (("eve", "username: eve has no second factor"), ("bob", "username: there is no user 'bob'")):
        with pytest.raises(CommandError, match=error):
            call_command("reset_second_factor", name, reason="x")


def test_rest_asks_for_no_second_factor(api, required):
    """Programs have keys."""
    assert api("GET", "projects").status_code == 200
