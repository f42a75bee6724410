"""What the control plane makes of environment variables that are wrong, empty, or those of another user."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from controlplane.core import environment, paths

LOOK = """
from django.conf import settings as s
print(s.STORE_PREFIX, s.ALLOWED_HOSTS, s.DATABASES["default"]["NAME"], s.HTTPS, len(s.METRICS_NETWORKS))
"""


def manage(settings, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run manage.py with variables, in a process as a person starts it."""
    given = {**os.environ, "DJANGO_SETTINGS_MODULE": "controlplane.settings", "DATABASE_URL": "", **variables}
    command = [sys.executable, "manage.py", *arguments]
    return subprocess.run(command, env=given, cwd=settings.BASE_DIR, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("SLUICEGATE_HTTPS", "tru", "SLUICEGATE_HTTPS: must be true or false, got 'tru'."),
        (
            "SLUICEGATE_VAR",
            "/dev/null",
            "SLUICEGATE_VAR: must name a folder that this user may write, got /dev/null (File exists).",
        ),
    ],
)
def test_a_wrong_variable_is_one_sentence(settings, name, value, sentence):
    """A misspelt "true" would switch HTTPS off, and a traceback tells nobody which variable is wrong."""
    done = manage(settings, "check", **{name: value})

    assert (done.returncode, done.stderr.strip()) == (1, sentence)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "SLUICEGATE_REST_RATE",
            "many",
            "SLUICEGATE_REST_RATE: must be a rate such as 1200/minute, or off, got 'many'.",
        ),
        ("DEBUG", "2", "DEBUG: must be true or false, got '2'."),
        ("DATABASE_URL", "postgres//h/n", "DATABASE_URL: must begin with postgres:// or sqlite:///."),
        ("DATABASE_URL", "mysql://u:p@h/n", "DATABASE_URL: must begin with postgres:// or sqlite:///."),
        ("DATABASE_URL", "postgres://u:p@h/", "DATABASE_URL: the name of the database must follow the host."),
        (
            "DATABASE_URL",
            "postgres://u:pa/ss@h/n",
            "DATABASE_URL: must have the form postgres://USER:PASSWORD@HOST:5432/NAME; write @ / ? # in a password as "
            "%40 and so on.",
        ),
    ],
)
def test_the_settings_refuse_a_wrong_variable(monkeypatch, name, value, sentence):
    """With the sentence that manage.py prints."""
    monkeypatch.setenv(name, value)

    with pytest.raises(ImproperlyConfigured) as refused:
        runpy.run_path(str(paths.BASE_DIR / "controlplane" / "settings.py"))

    assert str(refused.value) == sentence


def test_an_empty_variable_is_not_set(settings, tmp_path):
    """A compose file writes "${NAME:-}". Enforcers read an empty prefix as the default, so the control plane does."""
    names = ("SLUICEGATE_PREFIX", "ALLOWED_HOSTS", "DATABASE_URL", "SLUICEGATE_HTTPS", "SLUICEGATE_METRICS_NETWORKS")
    done = manage(settings, "shell", "-c", LOOK, SLUICEGATE_VAR=str(tmp_path), **dict.fromkeys(names, ""))

    expected = f"sg: ['localhost', '127.0.0.1', '[::1]'] {tmp_path}/controlplane.sqlite3 False 6"
    assert done.stdout.splitlines()[-1] == expected


def test_blanks_after_commas_are_no_part_of_a_value(monkeypatch):
    """Django would compare them with the Host field, and refuse every request."""
    monkeypatch.setenv("ALLOWED_HOSTS", "a.example, b.example,")

    assert environment.items("ALLOWED_HOSTS") == ["a.example", "b.example"]


def test_the_data_of_another_user_is_explained(monkeypatch, tmp_path):
    """Someone who did not start `up` runs `make env`."""

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(paths, "VAR_DIR", tmp_path)
    monkeypatch.setattr(Path, "read_text", refuse)

    with pytest.raises(ImproperlyConfigured, match=r"secret_key belongs to another user\. Run this"):
        paths.kept("secret_key")
