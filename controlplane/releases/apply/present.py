"""The rows that policy files are about, locked until the end of the transaction."""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from itertools import batched, chain
from typing import Protocol

from django.db.models import Q, QuerySet

from controlplane.core.transactions import take_turn
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.actions import lock_global_policy
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing.writing import REFERENCES
from enforcement.model.strict_json import dumps
from enforcement.policy_files.fields import override_key
from enforcement.policy_files.policy_file import PolicyFile

# The number of ids in one statement.
AT_ONCE = 5_000


class Visible(Protocol):
    """The rows that whoever applies a file may see. All others are missing for them."""

    @property
    def all_projects(self) -> bool: ...

    def projects(self) -> QuerySet[Project]: ...

    def policies(self) -> QuerySet[Policy]: ...

    def tokens(self) -> QuerySet[Token]: ...


class PresentState:
    """
    The present state of what some files are about.

    Attributes:
        projects: The projects of the files, by slug.
        policies: The policies of these projects, and the shared ones if a file is about them, by slug.
        overrides: The overrides of these projects and their tokens, by the key that a file has for each.
    """

    def __init__(self, files: Sequence[PolicyFile], visible: Visible, now: datetime) -> None:
        self._files, self._visible = files, visible
        slugs = sorted(file.project["slug"] for file in files if file.project)
        for slug in slugs:  # a project that is not there yet cannot be locked
            take_turn(f"apply {slug}")
        if shares := len(slugs) < len(files):
            lock_global_policy()
        projects = visible.projects().filter(slug__in=slugs)
        self.projects = {row.slug: row for row in projects.order_by("pk").select_for_update(of=("self",))}
        owners = [row.pk for row in self.projects.values()]
        own = Q(project__in=owners) | Q(project=None) if shares else Q(project__in=owners)
        policies = visible.policies().filter(own).select_related("project").prefetch_related("limits")
        self.policies = {row.slug: row for row in policies.order_by("pk").select_for_update(of=("self",))}
        held = Q(project__in=owners)
        if with_tokens := [self.projects[slug].pk for slug in self._with_tokens() if slug in self.projects]:
            held |= Q(token__project__in=with_tokens)
        rows = Override.objects.filter(held).select_related("limit__policy", "token", "project").order_by("pk")
        in_force = (row for row in rows.select_for_update(of=("self",)) if not (row.ends_at and row.ends_at <= now))
        self.overrides = {key_of(row): row for row in in_force}

    def _with_tokens(self) -> Iterable[str]:
        return (file.project["slug"] for file in self._files if file.project and file.token_overrides is not None)

    @property
    def digest(self) -> str:
        """A digest of everything that a plan depends on."""
        rows = chain(self.projects.values(), self.policies.values(), self.overrides.values())
        return hashlib.sha256(dumps([row.as_record() for row in rows]).encode()).hexdigest()[:32]

    @property
    def chosen(self) -> Policy | None:
        """The policy that applies to every request. None too if no file is about shared policies."""
        return next((row for row in self.policies.values() if row.is_global), None)

    @cached_property
    def named(self) -> dict[str, Policy]:
        """Policies that the files name and are not about, by slug."""
        projects = [file.project for file in self._files if file.project]
        slugs = {project.get(name) for project in projects for name in REFERENCES}
        overrides = (override for file in self._files for override in file.all_overrides.values())
        slugs |= {override["limit"].partition("/")[0] for override in overrides}
        missing = slugs - self.policies.keys() - {None}
        found = self._visible.policies().filter(slug__in=missing).prefetch_related("limits") if missing else ()
        return {policy.slug: policy for policy in found}

    @cached_property
    def tokens(self) -> dict[str, str]:
        """The project of each token that a file names, by the id of the token."""
        overrides = (override for file in self._files for override in (file.token_overrides or {}).values())
        ids = sorted({override["token"] for override in overrides})
        rows = (
            self._visible.tokens().filter(pk__in=some).values_list("pk", "project") for some in batched(ids, AT_ONCE)
        )
        return dict(chain.from_iterable(rows))


def key_of(override: Override) -> str:
    """Return the key that a policy file has for an override."""
    named = {"limit": str(override.limit), "token": override.token_id, "partition": override.values}
    return override_key(named)
