"""``sluicegate login`` and ``tokens``: where secrets are, and where they never are."""

import json
import stat
from pathlib import Path

import pytest
from django.utils import timezone

from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.projects.models import Token
from enforcement.cli.remote import account
from tests.factories import ManagementKeyFactory, PolicyFactory, ProjectFactory, TokenFactory


@pytest.fixture
def logged_out(monkeypatch):
    """Return the address of the control plane, which no variable names any more."""
    import os

    url = os.environ["SLUICEGATE_URL"]
    monkeypatch.delenv("SLUICEGATE_URL")
    monkeypatch.delenv("SLUICEGATE_KEY")
    return url


def mode(path):
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_login_saves_the_key_for_its_owner_alone(cli, logged_out, key, tmp_path):
    """In a folder that nobody else may open, and later commands use it."""
    found = cli("login", logged_out, "--key-stdin", stdin=f"{key.secret}\n")
    path = tmp_path / "config" / "sluicegate" / "login.json"

    assert (found.status, mode(path), mode(path.parent)) == (0, 0o600, 0o700)
    assert key.secret not in found.out + found.err
    assert cli("whoami").out == f"{logged_out}, with the key from {path}, which is accepted.\n"
    assert cli("logout").out == "Logged out.\n"
    assert not path.exists()


def test_a_key_that_is_not_accepted_is_not_saved(cli, logged_out):
    """Nor is it shown, also not in the trace."""
    secret = "sg_mgmt_" + "x" * 40
    found = cli("login", logged_out, "--key-stdin", "--trace", stdin=secret)

    assert found.status == 1
    assert secret not in found.out + found.err
    assert "GET /api/v1/projects 401" in found.err
    assert not account.account_file().exists()


def test_a_key_without_scopes_is_a_key(cli, logged_out):
    """What it may do is for each command to find out."""
    limited = ManagementKeyFactory(scopes=["audit:read"])

    assert cli("login", logged_out, "--key-stdin", stdin=limited.secret).status == 0


def test_without_a_login_a_command_says_what_to_do(cli, logged_out):
    """In one sentence, with exit status 2."""
    found = cli("tokens", "list")

    assert found.status == 2
    assert found.err == (
        "sluicegate tokens: No control plane is known. Run `sluicegate login URL`, or set SLUICEGATE_URL.\n"
    )


def test_variables_win_over_the_login(cli, key, monkeypatch):
    """And the saved key is sent to no other server than its own."""
    account.save(account.Account("https://other.example", "sg_mgmt_saved"))
    by_variables = cli("whoami", "--json")
    monkeypatch.delenv("SLUICEGATE_KEY")
    without_key = cli("whoami")

    assert json.loads(by_variables.out)["key_from"] == "SLUICEGATE_KEY"
    assert without_key.status == 2
    assert "No key for http://" in without_key.err


def test_a_login_that_others_can_read_is_refused(cli, logged_out):
    """It says how to mend that."""
    path = account.save(account.Account(logged_out, "sg_mgmt_saved"))
    path.chmod(0o640)

    assert cli("whoami").err == (
        f"sluicegate whoami: {path}: Must be readable by its owner alone, because it has a key. "
        f"Run `chmod 600 {path}`.\n"
    )


@pytest.mark.parametrize("text", ["", "[]", '{"url": 1}', "\x00", '{"url": "https://x.example"}'])
def test_a_damaged_login_is_one_sentence(cli, logged_out, text):
    """As after a full disk."""
    account.write_private(account.account_file(), text)
    found = cli("whoami")

    assert found.status == 2
    assert "sluicegate login" in found.err


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("limits.example", "Must begin with https:// or http:// and name a host."),
        ("https://ann:secret@limits.example", "Must have no user and no password."),
        ("https://limits.example/admin/", "Must be the address of the server alone"),
        ("https://limits.example:x", "Must be an address such as https://limits.example"),
        ("https://[::1", "Must be an address such as https://limits.example"),
        ("file:///etc/passwd", "Must begin with https:// or http://"),
    ],
)
def test_an_address_is_checked(cli, url, rule):
    """Before anything is sent to it."""
    found = cli("login", url, "--key-stdin", stdin="sg_mgmt_x")

    assert found.status == 2
    assert found.err.startswith(f"sluicegate login: URL: {rule}")


def test_an_address_without_encryption_is_warned_about():
    """But not this machine's own, and not that of the API."""
    clear = [account.is_clear(account.check_url(url)) for url in ("http://h.example", "http://[::1]:8000/api/v1/")]

    assert clear == [True, False]


def test_a_server_that_is_no_control_plane_is_named(cli, monkeypatch, live_server):
    """As when a port is another program's."""
    monkeypatch.setenv("SLUICEGATE_URL", "http://127.0.0.1:1")

    assert cli("whoami").err.startswith("sluicegate whoami: http://127.0.0.1:1 cannot be reached: ")


def test_a_secret_goes_to_a_file_for_its_owner_alone(cli):
    """And to the terminal only if somebody says so."""
    ProjectFactory(slug="chat", token_policy=PolicyFactory(slug="free"))
    found = cli("tokens", "create", "chat", "ci", "--label", "team=red", "--json")
    shown = json.loads(found.out)
    secret = Path(shown["secret_file"]).read_text().strip()

    assert (mode(shown["secret_file"]), mode(Path(shown["secret_file"]).parent)) == (0o600, 0o700)
    assert secret.startswith("sg_live_")
    assert secret not in found.out + found.err
    assert (shown["policy"], shown["labels"]) == ("free", {"team": "red"})

    printed = cli("tokens", "rotate", shown["id"], "--overlap-seconds", "60", "--print-secret")
    assert printed.out.startswith("sg_live_")
    assert printed.out.strip() != secret


def test_a_secret_whose_response_was_lost_is_not_replaced_in_silence(cli, lossy, monkeypatch):
    """The token exists once, and the command says that its secret does not."""
    ProjectFactory(slug="chat")
    monkeypatch.setenv("SLUICEGATE_URL", lossy.url)
    lossy.responses = {0}
    found = cli("tokens", "create", "chat", "ci")

    assert found.status == 1
    assert "was created, but its secret was lost with the response. Rotate it." in found.err
    assert Token.objects.count() == 1


def test_tokens_are_listed_and_revoked(cli):
    """A revocation is confirmed, or the option says yes."""
    token = TokenFactory(project__slug="chat")
    Token.objects.update(name="c\x1bi")  # as an older version would have saved it

    listed = cli("tokens", "list", "--project", "chat")
    asked = cli("tokens", "revoke", token.pk)
    revoked = cli("tokens", "revoke", token.pk, "--yes", "--reason", "leaked")

    assert f"{token.pk}  chat     c\\x1bi" in listed.out
    assert (asked.status, revoked.status) == (2, 0)
    assert revoked.out.endswith("is revoked.\n")


@pytest.mark.parametrize("words", [["revoke", "sg_live_secret", "--yes"], ["rotate", "../policies/x"]])
def test_what_is_no_id_of_a_token_is_refused_and_not_shown(cli, words):
    """It may be a secret, or lead to another address."""
    found = cli("tokens", *words)

    assert found.status == 2
    assert "Must be the id of a token, which begins with tok_." in found.err
    assert words[1] not in found.err


@pytest.mark.parametrize("label", ["team", "=red", "team=red\x00"])
def test_a_wrong_label_is_refused(cli, label):
    """By the command, or by the control plane."""
    ProjectFactory(slug="chat")

    assert cli("tokens", "create", "chat", "ci", "--label", label).status == 2
    assert not Token.objects.exists()


def test_no_traceback_has_the_key(key):
    """Python shows the repr of values in the errors of some calls."""
    assert key.secret not in repr(account.Account("https://limits.example", key.secret))


def test_arguments_that_are_no_text_are_one_sentence(cli):
    """As a shell hands over bytes that are not UTF-8."""
    found = cli("tokens", "create", "chat", "\udcff")

    assert (found.status, found.err) == (2, "sluicegate tokens: Arguments and variables must be UTF-8.\n")


def test_keys_are_created_changed_rotated_and_revoked(cli):
    """Each by one command, with its secret in a file for its owner alone."""
    ProjectFactory(slug="chat")
    made = json.loads(cli("keys", "create", "ci", "--scope", "usage:read", "--project", "chat", "--json").out)
    secret = Path(made["secret_file"]).read_text().strip()
    changed = cli("keys", "change", made["id"], "--network", "192.0.2.0/24", "--network", "2001:db8::/32", "--json")
    rotated = cli("keys", "rotate", made["id"], "--overlap-seconds", "0", "--print-secret")
    listed = cli("keys", "list", "--name", "ci")
    asked = cli("keys", "revoke", made["id"])
    active = json.loads(cli("keys", "list", "--name", "ci", "--status", "active", "--json").out)["results"]
    revoked = cli("keys", "revoke", active[0]["id"], "--yes", "--reason", "leaked")

    assert (mode(made["secret_file"]), secret.startswith("sg_mgmt_")) == (0o600, True)
    assert json.loads(changed.out)["networks"] == ["192.0.2.0/24", "2001:db8::/32"]
    assert rotated.out.startswith("sg_mgmt_")
    assert "192.0.2.0/24,2001:db8::/32  usage:read" in listed.out
    assert (asked.status, revoked.status, len(active)) == (2, 0, 1)
    assert not ManagementKey.objects.filter(name="ci").live(timezone.now()).exists()


def test_a_new_key_that_cannot_be_saved_is_named(cli, key, tmp_path, monkeypatch):
    """Its secret is lost, and the id says which key has to be rotated again."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))

    found = cli("keys", "rotate", key.pk, "--overlap-seconds", "60", "--log-in")

    new = ManagementKey.objects.exclude(pk=key.pk).get()
    assert found.status == 1
    assert f"({new.pk}) was created, but its secret cannot be written. Rotate it." in found.err


def test_the_own_key_is_rotated_with_its_login(cli, key, logged_out):
    """Later commands use the new key, and no file but that of the login has it."""
    cli("login", logged_out, "--key-stdin", stdin=key.secret)

    found = cli("keys", "rotate", key.pk, "--overlap-seconds", "0", "--log-in", "--json")

    assert found.status == 0
    assert "sg_mgmt_" not in found.out.replace(json.loads(found.out)["prefix"], "")
    assert cli("whoami").status == 0
    assert not ManagementKey.objects.live(timezone.now()).filter(pk=key.pk).exists()


@pytest.mark.parametrize(
    "words",
    [
        ["revoke", "sg_mgmt_secret", "--yes"],
        ["rotate", "../policies/x"],
        ["change", "mgk_1"],
        ["change", "mgk_1", "--project", "chat", "--all-projects"],
        ["change", "mgk_1", "--network", "::/0", "--from-everywhere"],
        ["create", "ci", "--scope", "nothing"],
        ["create", "ci", "--scope", "usage:read"],
        ["rotate", "mgk_1", "--log-in", "--print-secret"],
    ],
)
def test_a_wrong_command_about_keys_changes_nothing(cli, key, words):
    """By the command, or by the control plane."""
    found = cli("keys", *words)

    assert (found.status, ManagementKey.objects.count()) == (2, 1)
    assert "sg_mgmt_secret" not in found.err


def test_a_key_makes_none_that_is_more_than_itself(cli, monkeypatch):
    """As REST has it."""
    own = ManagementKeyFactory(projects=[ProjectFactory(slug="chat")], scopes=["keys:write", "usage:read"])
    monkeypatch.setenv("SLUICEGATE_KEY", own.secret)

    assert cli("keys", "create", "ci", "--scope", "policies:write", "--project", "chat").status == 2
    assert cli("keys", "create", "ci", "--scope", "usage:read", "--all-projects").status == 2
    assert cli("keys", "create", "ci", "--scope", "usage:read", "--project", "chat").status == 0
