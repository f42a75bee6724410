import subprocess
import sys
from importlib import import_module

import pytest
from django.conf import settings
from django.test import Client

from controlplane.aliases import FORMER


@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_is_the_same_module(former):
    """A class is the same by either name, and the module goes on to know its own name and file."""
    module = import_module(former)

    assert module is import_module(FORMER[former])
    assert module.__name__ == module.__spec__.name == FORMER[former]
    assert module.__spec__.has_location


@pytest.mark.parametrize("order", [list(FORMER), list(FORMER.values())])
def test_either_name_may_come_first(order):
    """A process that begins with a former name warns of nothing, and loads no model twice."""
    lines = ["import django", "django.setup()", "from importlib import import_module"]
    lines += [f"import_module({name!r})" for name in [*order, *FORMER, *FORMER.values()]]

    subprocess.run([sys.executable, "-W", "error", "-c", "\n".join(lines)], check=True)


def test_a_session_of_an_earlier_version_goes_on(admin_client: Client):
    """The session names the class that has logged in. Django ends it if the settings do not name the same."""
    assert admin_client.session["_auth_user_backend"] == "controlplane.access.backend.RoleBackend"
    assert admin_client.session["_auth_user_backend"] in settings.AUTHENTICATION_BACKENDS
    assert admin_client.get("/admin/").status_code == 200


def test_other_names_below_a_former_package_are_unknown():
    with pytest.raises(ModuleNotFoundError):
        import_module("controlplane.access.nothing")
