from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import connection, models
from django.db.models.fields.json import KeyTextTransform
from django.db.models.lookups import Exact
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.core.instants import LATEST
from controlplane.core.text import PRINTABLE, ReadableEncoder, escaped, unprintable
from controlplane.lists.token_indexes import TOKEN_INDEXES
from controlplane.projects.scopes import SCOPES
from controlplane.projects.zones import check_time_zone
from enforcement.model import matching, tokens
from enforcement.model.limits import DAY_SECONDS
from enforcement.model.partitions import DEFAULT_CAP, MAX_CAP

SLUG_PATTERN = "[a-z0-9][a-z0-9-]{0,62}"
SLUG_RULE = RegexValidator(
    rf"\A{SLUG_PATTERN}\Z",
    "Use 1 to 63 lower-case letters, digits and hyphens, starting with a letter or digit.",
)

MAX_OVERLAP_SECONDS = 30 * DAY_SECONDS


def isoformat(instant: datetime | None) -> str | None:
    """Return the instant as ISO 8601 writes it, or None for None."""
    return instant.isoformat() if instant else None


def check_is_future(field: str, instant: datetime | None) -> None:
    """Raise ValidationError for *field* if it holds an instant that is over, or later than enforcers can read."""
    if instant is not None and instant <= timezone.now():
        message = f"Must be in the future, got {instant.isoformat()}."
        raise ValidationError({field: ValidationError(message, code="past")})
    if instant is not None and instant >= LATEST:
        message = f"Must be before the year {LATEST.year}, got {instant.isoformat()}."
        raise ValidationError({field: ValidationError(message, code="range")})


class Versioned(models.Model):
    """A row that counts its changes. Only change() increases the number."""

    version = models.PositiveIntegerField(default=1, editable=False)

    class Meta:
        abstract = True

    def advance(self) -> None:
        # Added in SQL, because two changes at the same time must not get the same version.
        type(self).objects.filter(pk=self.pk).update(version=models.F("version") + 1)
        self.refresh_from_db(fields=["version"])


class Project(Versioned):
    # Members do not change these. A slug in use is refused, so that they would learn those of other projects, and the
    # values of all projects share the memory of the store.
    FOR_OPERATORS = ("slug", "partition_cap")

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "proj"), editable=False)
    slug = models.CharField(max_length=63, unique=True, validators=[SLUG_RULE])
    name = models.CharField(max_length=200, validators=[PRINTABLE])
    policy = models.ForeignKey("policies.Policy", models.RESTRICT, null=True, blank=True, related_name="+")
    anonymous_policy = models.ForeignKey(
        "policies.Policy",
        models.RESTRICT,
        null=True,
        blank=True,
        related_name="+",
        help_text="The policy of requests without a token, where a proxy admits them for this project. The policy of "
        "the project does not apply to them. If empty, they are refused.",
    )
    token_policy = models.ForeignKey(
        "policies.Policy",
        models.RESTRICT,
        null=True,
        blank=True,
        related_name="+",
        verbose_name="policy of new tokens",
        help_text="The policy of each new token that is created without one. Existing tokens stay as they are.",
    )
    active = models.BooleanField(default=True, help_text="The tokens of an inactive project are refused everywhere.")
    partition_cap = models.PositiveIntegerField(
        "values for each limit",
        default=DEFAULT_CAP,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(MAX_CAP)],
        help_text="How many values of an attribute, such as ip, have a counter of their own in one limit. All other "
        "values share one counter. From 1 to 1,000,000. If empty, 10,000.",
    )
    time_zone = models.CharField(
        max_length=64,
        default="UTC",
        db_default="UTC",
        blank=True,
        validators=[check_time_zone],
        help_text="Months of statements begin at midnight here, such as Europe/Berlin. If empty, in UTC.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug

    def clean(self) -> None:
        if self.partition_cap is None:
            self.partition_cap = DEFAULT_CAP
        self.time_zone = self.time_zone or "UTC"
        names = ("policy", "anonymous_policy", "token_policy")
        attached = {name: getattr(self, name) for name in names}
        foreign = [name for name, policy in attached.items() if policy and policy.project_id not in (None, self.pk)]
        if foreign:
            raise ValidationError(dict.fromkeys(foreign, "Must not be a policy of another project."))

    def as_record(self) -> dict[str, Any]:
        """Return the fields of this row that an audit entry keeps, as a new dictionary."""
        fields = {"slug": self.slug, "name": self.name, "policy": self.policy_id, "active": self.active}
        policies = {"anonymous_policy": self.anonymous_policy_id, "token_policy": self.token_policy_id}
        more = {**policies, "partition_cap": self.partition_cap, "time_zone": self.time_zone}
        return {"id": self.pk, **fields, **more, "version": self.version}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield one pair, "project" and this row's id, for the outbox entry that a change of this row needs."""
        yield "project", self.pk

    def dependents(self) -> Iterator[models.Model]:
        """Yield the tokens, policies, memberships, suspensions and overrides that are deleted with this project."""
        yield from self.tokens.all()
        yield from self.policies.prefetch_related("limits")
        yield from self.memberships.select_related("user", "project")
        yield from self.suspended_values.all()
        of_this = models.Q(project=self) | models.Q(token__project=self) | models.Q(limit__policy__project=self)
        overrides = self.overrides.model.objects.filter(of_this)
        yield from overrides.select_related("limit__policy", "token", "project")

    def narrowed_keys(self) -> "models.QuerySet[ManagementKey]":
        """
        Return a query of the live keys that are limited to this project, which locks them until the transaction ends.

        Without the lock, two deletions at once would each find the project of the other among those that are left.
        """
        limited = self.managementkey_set.filter(all_projects=False, revoked_at=None)
        return limited.order_by("pk").select_for_update(of=("self",))


class CredentialQuerySet(models.QuerySet):
    def live(self, now: datetime) -> "CredentialQuerySet":
        """Return a query of the credentials that are neither revoked nor expired."""
        return self.filter(revoked_at=None).exclude(expires_at__lte=now)


class Credential(models.Model):
    """A secret of which only the digest is stored."""

    name = models.CharField(max_length=200, validators=[PRINTABLE])
    digest = models.CharField(max_length=64, unique=True, editable=False)
    prefix = models.CharField(max_length=tokens.PREFIX_LENGTH, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        abstract = True
        ordering = ["-created_at", "-id"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    def clean(self) -> None:
        """Raise ValidationError for an end that is over, and for another name or end of an ended credential."""
        former = None if self._state.adding else type(self).objects.filter(pk=self.pk).first()
        changed = [
            name for name in ("name", "expires_at") if not former or getattr(former, name) != getattr(self, name)
        ]
        if former and not former.is_live and changed:
            what = self._meta.verbose_name
            message = f"Must not be changed, because this {what} is {former.status}. Create another {what}."
            raise ValidationError({name: ValidationError(message, code="ended") for name in changed})
        if "expires_at" in changed:
            check_is_future("expires_at", self.expires_at)

    @property
    def status(self) -> str:
        """The status, which is "active", "revoked" or "expired". A credential that is both is "revoked"."""
        if self.revoked_at:
            return "revoked"
        if self.expires_at and self.expires_at <= timezone.now():
            return "expired"
        return "active"

    @property
    def is_live(self) -> bool:
        return self.status == "active"

    def set_secret(self, kind: str) -> str:
        """Set a new secret of this credential without saving, and return the secret, which cannot be read again."""
        secret = tokens.mint(kind)
        self.digest, self.prefix = tokens.digest(secret), secret[: tokens.PREFIX_LENGTH]
        return secret


class TokenQuerySet(CredentialQuerySet):
    def with_label(self, name: str, value: str | None = None) -> "TokenQuerySet":
        """Return a query of the tokens that have this label, for None with any value."""
        if value is None:
            return self.filter(labels__has_key=name)
        if connection.vendor == "postgresql":  # which has an index for this operator
            return self.filter(labels__contains={name: value})
        # Not by a keyword, because the name of a label may have two underscores.
        return self.filter(Exact(KeyTextTransform(name, "labels"), value))


class TokenManager(models.Manager.from_queryset(TokenQuerySet)):
    def issue(self, project: Project, **fields: Any) -> tuple["Token", str]:
        """
        Save a new token with the given project, name, policy, labels and expires_at, and return it with its secret.

        Without a policy, it gets that of the new tokens of the project. With the policy None, it gets none.

        Raises:
            ValidationError: A field breaks a rule of the model. Nothing is saved.
        """
        token = self.model(project=project, **{"policy": project.token_policy, **fields})
        secret = token.set_secret("live")
        token.full_clean()
        token.save(force_insert=True)
        return token, secret

    def rotate(self, token: "Token", overlap_seconds: int) -> tuple["Token", str]:
        """
        Save a new token, which replaces *token* after *overlap_seconds*, and return it with its secret.

        The new token has the same name, policy, labels, overrides and life span. With an overlap of 0, the old token is
        revoked at once.

        Raises:
            ValidationError: The token was rotated before, is revoked or expired, or the overlap is not from 0 to 30
                days.
        """
        if not 0 <= overlap_seconds <= MAX_OVERLAP_SECONDS:
            message = f"Must be from 0 to {MAX_OVERLAP_SECONDS} seconds (30 days), got {overlap_seconds}."
            raise ValidationError({"overlap_seconds": message})
        if token.replaced_by_id:
            raise ValidationError(f"This token was already rotated to {token.replaced_by_id}.", "already_rotated")
        if not token.is_live:
            message = f"This token is {token.status}. Only an active token can be rotated."
            raise ValidationError(message, "token_not_live")
        now = timezone.now()
        expires_at = token.expires_at and now + (token.expires_at - token.created_at)
        # The name of an old token may break the present rule, which is no reason to keep its secret in use.
        name = escaped(token.name)[:200]
        kept = {"policy": token.policy, "labels": token.labels}
        issued = self.issue(token.project, name=name, expires_at=expires_at, **kept)
        for override in token.overrides.all():
            override.copy_to(issued[0])
        token.replaced_by = issued[0]
        token.retire(now, now + timedelta(seconds=overlap_seconds))
        return issued


class Token(Credential):
    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "tok"), editable=False)
    project = models.ForeignKey(Project, models.CASCADE, related_name="tokens")
    policy = models.ForeignKey(
        "policies.Policy",
        models.RESTRICT,
        null=True,
        blank=True,
        related_name="+",
        help_text="If empty, a new token gets the policy of new tokens of its project, if there is one.",
    )
    labels = models.JSONField(default=dict, blank=True, db_default={}, encoder=ReadableEncoder)
    replaced_by = models.OneToOneField(
        "self", models.SET_NULL, null=True, editable=False, related_name="+", help_text="The token that rotation made."
    )

    objects = TokenManager()

    class Meta(Credential.Meta):
        indexes = TOKEN_INDEXES

    def clean(self) -> None:
        super().clean()
        if self.policy and self.policy.project_id not in (None, self.project_id):
            raise ValidationError({"policy": "Must not be a policy of another project."})
        self.check_labels()

    def check_labels(self) -> None:
        """Raise ValidationError for labels that enforcers refuse, or that look different from what they are."""
        try:
            self.labels = dict(matching.check_labels(self.labels))
        except ValueError as exc:
            raise ValidationError({"labels": f"{str(exc)[0].upper()}{str(exc)[1:]}."}) from exc
        for name, value in self.labels.items():
            if found := unprintable(value):
                message = f"The value of {name} must have printable characters only, but contains {found}."
                raise ValidationError({"labels": message})

    def retire(self, now: datetime, end: datetime) -> None:
        """Revoke this token if *end* is not after *now*, else save the earlier of *end* and its own end as its end."""
        if end <= now:
            self.revoked_at = now
        else:
            self.expires_at = min(end, self.expires_at or end)
        self.save(update_fields=["revoked_at", "expires_at", "replaced_by"])

    def as_record(self) -> dict[str, Any]:
        fields = {"project": self.project_id, "name": self.name, "prefix": self.prefix, "policy": self.policy_id}
        labels = {"labels": self.labels} if self.labels else {}
        ends = {"expires_at": isoformat(self.expires_at), "revoked_at": isoformat(self.revoked_at)}
        return {"id": self.pk, **fields, **labels, **ends}

    def touches(self) -> Iterator[tuple[str, str]]:
        # The digest names the key in the store, and after a deletion the id does not lead to it.
        yield "token", self.digest

    def dependents(self) -> Iterator[models.Model]:
        """Yield the overrides of this token, which are deleted with this row."""
        yield from self.overrides.select_related("limit__policy")


class ManagementKeyManager(models.Manager.from_queryset(CredentialQuerySet)):
    def issue(self, *, projects: Iterable[Project] = (), **fields: Any) -> tuple["ManagementKey", str]:
        """
        Save a new key with the given name, scopes, all_projects and expires_at, and return it with its secret.

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


class ManagementKey(Credential):
    """The credential of a program that uses the REST API."""

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "mgk"), editable=False)
    scopes = models.JSONField(default=list, help_text="What the key may do, for example projects:read.")
    all_projects = models.BooleanField(
        default=False, help_text="Whether the key works for every project, also for those that are created later."
    )
    projects = models.ManyToManyField(
        Project, blank=True, help_text="The projects for which the key works. If they are deleted, it works for none."
    )

    objects = ManagementKeyManager()

    def clean(self) -> None:
        super().clean()
        if not isinstance(self.scopes, list) or not self.scopes:
            raise ValidationError({"scopes": f"Must be a list of at least one scope, got {self.scopes!r}."})
        unknown = [scope for scope in self.scopes if scope not in SCOPES]
        if unknown:
            message = f"Must be from {', '.join(SCOPES)}, got {', '.join(map(str, unknown))}."
            raise ValidationError({"scopes": message})

    def check_reach(self, projects: Collection[Project]) -> None:
        """Raise ValidationError unless the key has either all_projects or some of *projects*."""
        if self.all_projects and projects:
            raise ValidationError({"projects": "Must be empty for a key that works for every project."})
        if not self.all_projects and not projects:
            raise ValidationError({"projects": "Name at least one project, or choose all projects."})

    def allows(self, scope: str) -> bool:
        """Return whether the key has this scope."""
        return "*" in self.scopes or scope in self.scopes

    def revoke(self, now: datetime) -> None:
        self.revoked_at = now
        self.save(update_fields=["revoked_at"])

    def as_record(self) -> dict[str, Any]:
        fields = {"name": self.name, "prefix": self.prefix, "scopes": self.scopes}
        ends = {"expires_at": isoformat(self.expires_at), "revoked_at": isoformat(self.revoked_at)}
        reach = {"all_projects": self.all_projects, "projects": [project.slug for project in self.projects.all()]}
        return {"id": self.pk, **fields, **ends, **reach}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield nothing, because enforcers do not know management keys."""
        yield from ()

    dependents = touches
