"""Rules that keep a management key from giving another one, or itself, more rights than it has."""

from collections.abc import Collection, Mapping

from controlplane.objects.keys import networks
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.projects.models import Project, isoformat

CODE = "exceeds_own_key"


def excess(own: ManagementKey, key: ManagementKey, projects: Collection[Project]) -> Mapping[str, str]:
    """
    Return a sentence for each field in which a key is more than *own*, by the names of the fields.

    Args:
        own: The key that asks for the change.
        key: The key as it is, or as it would be. It need not be saved.
        projects: The projects to which it is limited. They are not read from the key, which may not have them yet.
    """
    found = {
        "scopes": _scopes(own, key),
        "all_projects": "Must not be true, because your key is limited to some projects."
        if key.all_projects and not own.all_projects
        else "",
        "projects": _projects(own, projects),
        "networks": _networks(own, key),
        "expires_at": _end(own, key),
    }
    return {name: sentence for name, sentence in found.items() if sentence}


def _scopes(own: ManagementKey, key: ManagementKey) -> str:
    missing = [scope for scope in key.scopes if not own.allows(scope)]
    return f"Must be scopes of your own key, which lacks {', '.join(missing)}." if missing else ""


def _projects(own: ManagementKey, projects: Collection[Project]) -> str:
    if own.all_projects:
        return ""
    reached = set(own.projects.values_list("pk", flat=True))
    foreign = [project.slug for project in projects if project.pk not in reached]
    return f"Must be projects of your own key, which is not for {', '.join(foreign)}." if foreign else ""


def _networks(own: ManagementKey, key: ManagementKey) -> str:
    if own.networks is None:
        return ""
    bounds = f"Must lie in the networks of your own key, which are {', '.join(own.networks)}"
    if key.networks is None:
        return f"{bounds}."
    try:
        outside = networks.beyond(networks.normal(key.networks), own.networks)
    except ValueError:  # another program has written them
        outside = networks.as_stored(key.networks) or ["an empty list"]
    return f"{bounds}, unlike {', '.join(outside)}." if outside else ""


def _end(own: ManagementKey, key: ManagementKey) -> str:
    if own.expires_at is None or (key.expires_at and key.expires_at <= own.expires_at):
        return ""
    return f"Must not be later than {isoformat(own.expires_at)}, when your own key ends."
