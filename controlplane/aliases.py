"""
Former names of modules, which the documentation names, and stored sessions.

A module has one object under both names, so that a class is the same by either.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

FORMER = {
    "controlplane.access": "controlplane.web.login",
    "controlplane.access.backend": "controlplane.web.login.backend",
    "controlplane.policies": "controlplane.objects.policies",
    "controlplane.policies.models": "controlplane.objects.policies.models",
    "controlplane.projects": "controlplane.objects.projects",
    "controlplane.projects.actions": "controlplane.objects.projects.actions",
    "controlplane.projects.models": "controlplane.objects.projects.models",
    "controlplane.publishing": "controlplane.releases.publishing",
    "controlplane.publishing.changes": "controlplane.changes.change.transaction",
    "controlplane.usage": "controlplane.traffic.usage",
    "controlplane.usage.tasks": "controlplane.traffic.usage.tasks",
}


class Former(MetaPathFinder, Loader):
    """Finds modules by their former names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in FORMER else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(FORMER[spec.name])
        # The import is about to replace the module's own, which says where its file is.
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            module.__spec__ = spec.loader_state


def install() -> None:
    """Find modules by their former names from now on, before the files of packages are looked for."""
    sys.meta_path.insert(0, Former())
