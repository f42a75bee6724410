"""Management keys, which are the credentials of programs that use the REST API."""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Self

from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.core.text import escaped
from controlplane.objects.keys import networks
from controlplane.objects.keys.scopes import IMPLIED, SCOPES
from controlplane.objects.projects.models import Credential, CredentialQuerySet, Project, isoformat


class ManagementKeyQuerySet(CredentialQuerySet["ManagementKey"]):
    def within(self, projects: Collection[str] | models.QuerySet) -> Self:
        """Return a query of the keys that are limited to these projects, and to no others besides."""
        through = ManagementKey.projects.through.objects
        within, others = through.filter(project__in=projects), through.exclude(project__in=projects)
        keys = self.filter(all_projects=False, pk__in=within.values("managementkey"))
        return keys.exclude(pk__in=others.values("managementkey"))


_ManagementKeyManager = models.Manager.from_queryset(ManagementKeyQuerySet)


class ManagementKeyManager(_ManagementKeyManager["ManagementKey"]):
    def narrowed_with(self, project: Project) -> ManagementKeyQuerySet:
        """
        Return a query of the live keys that are limited to this project, which locks them until the transaction ends.

        Without the lock, two deletions at once would each find the project of the other among those that are left.
        """
        limited = self.filter(projects=project, all_projects=False, revoked_at=None)
        return limited.order_by("pk").select_for_update(of=("self",))

    def issue(self, *, projects: Iterable[Project] = (), **fields: Any) -> tuple["ManagementKey", str]:
        """
        Save a new key with the given projects and other fields, and return it with its secret.

        Raises:
            ValidationError: A scope is unknown, a field breaks a rule of the model, or the key has neither
                all_projects nor a project, or both. Nothing is saved.
        """
        projects = list(projects)
        key = self.model(**fields)
        key.check_reach(projects)
        secret = key.set_secret("mgmt")
        key.full_clean()
        key.save(force_insert=True)
        key.projects.set(projects)
        return key, secret

    def rotate(
        self, key: "ManagementKey", overlap_seconds: int, latest: datetime | None
    ) -> tuple["ManagementKey", str]:
        """
        Save a new key, which replaces *key* after *overlap_seconds*, and return it with its secret.

        The new key has the same name, scopes, projects, networks and life span. It ends at *latest* if that is earlier.

        Raises:
            ValidationError: The key was rotated before, is revoked or expired, or the overlap is not from 0 to 30 days.
        """
        key.check_rotation(overlap_seconds)
        now = timezone.now()
        same = {"scopes": key.scopes, "all_projects": key.all_projects, "networks": key.networks}
        end = min(filter(None, (key.renewed_end(now), latest)), default=None)
        # The name of an old key may break the present rule, which is no reason to keep its secret in use.
        issued = self.issue(projects=key.projects.all(), name=escaped(key.name)[:200], expires_at=end, **same)
        key.replaced_by = issued[0]
        key.retire(now, now + timedelta(seconds=overlap_seconds))
        return issued


class ManagementKey(Credential):
    """The credential of a program that uses the REST API."""

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "mgk"), editable=False)
    scopes = models.JSONField(default=list, help_text="What the key may do, for example projects:read.")
    all_projects = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Whether the key works for every project, also for those that are created later.",
    )
    projects = models.ManyToManyField(
        Project, blank=True, help_text="The projects for which the key works. If they are deleted, it works for none."
    )

    networks = models.JSONField(
        null=True,
        blank=True,
        help_text="From where the key may be used, such as 192.0.2.0/24 or 2001:db8::/32. If empty, from everywhere.",
    )
    replaced_by = models.OneToOneField(
        "self", models.SET_NULL, null=True, editable=False, related_name="+", help_text="The key that rotation made."
    )

    objects = ManagementKeyManager()
    LASTING = (*Credential.LASTING, "scopes", "all_projects", "networks")

    class Meta(Credential.Meta):
        # The table, the permissions and the addresses in the admin stay as they were before this room was its own.
        app_label = "projects"

    def clean(self) -> None:
        super().clean()
        if not isinstance(self.scopes, list) or not self.scopes:
            raise ValidationError({"scopes": f"Must be a list of at least one scope, got {self.scopes!r}."})
        unknown = [scope for scope in self.scopes if scope not in SCOPES]
        if unknown:
            message = f"Must be from {', '.join(SCOPES)}, got {', '.join(map(str, unknown))}."
            raise ValidationError({"scopes": message})
        if self.networks is not None:
            try:
                self.networks = networks.normal(self.networks)
            except ValueError as exc:
                raise ValidationError({"networks": str(exc)}) from exc

    def check_reach(self, projects: Collection[Project]) -> None:
        """Raise ValidationError unless the key has either all_projects or some of *projects*."""
        if self.all_projects and projects:
            raise ValidationError({"projects": "Must be empty for a key that works for every project."})
        if not self.all_projects and not projects:
            raise ValidationError({"projects": "Name at least one project, or choose all projects."})

    def allows(self, scope: str) -> bool:
        """Return whether the key has this scope, or a greater one."""
        return any(held in self.scopes for held in ("*", scope, IMPLIED.get(scope)))

    def allows_from(self, address: str | None) -> bool:
        """
        Return whether the key may be used from an address, which is None if it is unknown.

        Raises:
            ValueError: Another program has written networks that no key may have.
        """
        return self.networks is None or networks.contain(self.networks, address)

    def revoke(self, now: datetime) -> None:
        self.revoked_at = now
        self.save(update_fields=["revoked_at"])

    def narrow(self) -> str:
        """Revoke the key if it has no project left, after one of them was deleted, and return the action to audit."""
        if self.projects.exists():
            return "managementkey.narrow"
        self.revoke(timezone.now())
        return "managementkey.revoke"

    def audited_project(self, before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
        """Return the id of the only project of the key, or an empty string."""
        # The entries of a key of several projects name all of them, also if only one is left.
        named = {slug for record in (before, after) if record for slug in record["projects"]}
        projects = () if self.all_projects or len(named) > 1 else tuple(self.projects.all()[:2])
        return projects[0].pk if len(projects) == 1 else ""

    def as_record(self) -> dict[str, Any]:
        fields = {"name": self.name, "prefix": self.prefix, "scopes": self.scopes}
        ends = {"expires_at": isoformat(self.expires_at), "revoked_at": isoformat(self.revoked_at)}
        reach = {"all_projects": self.all_projects, "projects": [project.slug for project in self.projects.all()]}
        return {"id": self.pk, **fields, **ends, **reach, "networks": self.networks}
