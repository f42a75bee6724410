from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Self

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import connection, models
from django.db.models.fields.json import KeyTextTransform
from django.db.models.lookups import Exact
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.core.instants import LATEST
from controlplane.core.records import RecordedModel
from controlplane.core.tables.token_indexes import TOKEN_INDEXES
from controlplane.core.text import PRINTABLE, ReadableEncoder, escaped, unprintable
from controlplane.core.versions import Versioned
from controlplane.core.zones import check_time_zone
from enforcement.model import matching, tokens
from enforcement.model.instants import DAY_SECONDS
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
    # Whether an account of the store is limited to it, so that its usage also comes by a stream of its own.
    has_intake = models.BooleanField(default=False, db_default=False, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug

    def clean(self) -> None:
        self.partition_cap = self.partition_cap or DEFAULT_CAP
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
        managed = {"managed_by": self.managed_by} if self.managed_by else {}
        intake = {"has_intake": True} if self.has_intake else {}
        return {"id": self.pk, **fields, **more, **managed, **intake, "version": self.version}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield the pairs of a kind and an id for the outbox entries that a change of this row needs."""
        yield "project", self.pk
        if self.has_intake:
            yield "intakes", ""

    def audited_project(self, before: object, after: object) -> str:
        """Return the id of the project whose members may read the audit of this row."""
        return self.pk

    def narrowed(self) -> Iterator[models.Model]:
        """Yield the management keys that stay and lose this project, locked. Each has ``narrow()`` for that."""
        yield from self.managementkey_set.model.objects.narrowed_with(self)

    def dependents(self) -> Iterator[RecordedModel]:
        """Yield all rows with a record of their own that are deleted with this project."""
        yield from self.tokens.all()
        yield from self.policies.prefetch_related("limits")
        yield from self.policy_drafts.all()
        yield from self.memberships.select_related("user", "project")
        yield from self.suspended_values.all()
        # Enforcers read it from the document of the emergency, which the deletion of the project alone does not change.
        yield from self.suspended_values.model.objects.filter(project=self)
        yield from (*self.alert_rules.all(), *self.destinations.all())
        of_this = models.Q(project=self) | models.Q(token__project=self) | models.Q(limit__policy__project=self)
        overrides = self.overrides.model.objects.filter(of_this)
        yield from overrides.select_related("limit__policy", "token", "project")


class CredentialQuerySet[C: "Credential"](models.QuerySet[C]):
    def live(self, now: datetime) -> Self:
        """Return a query of the credentials that are neither revoked nor expired."""
        return self.filter(revoked_at=None).exclude(expires_at__lte=now)


class Credential(RecordedModel):
    """
    A secret of which only the digest is stored.

    Attributes:
        LASTING: The fields that stay as they are once the credential has ended.
        RETIRING: The fields that another credential in its place changes.
        secret: The secret in clear, which only a row has that the response to its creation shows.
    """

    LASTING: tuple[str, ...] = ("name", "expires_at")
    RETIRING: tuple[str, ...] = ("revoked_at", "expires_at", "replaced_by")
    replaced_by_id: str | None
    secret: str
    name = models.CharField(max_length=200, validators=[PRINTABLE])
    digest = models.CharField(max_length=64, unique=True, editable=False)
    prefix = models.CharField(max_length=tokens.PREFIX_LENGTH, editable=False)
    # Empty if it was created before the end was kept.
    secret_end = models.CharField(
        "end of the secret", max_length=tokens.END_LENGTH, blank=True, default="", db_default="", editable=False
    )
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
        """Raise ValidationError for an end that is over, and for a changed field of an ended credential."""
        former = None if self._state.adding else type(self)._default_manager.filter(pk=self.pk).first()
        changed = [name for name in self.LASTING if not former or getattr(former, name) != getattr(self, name)]
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

    def check_rotation(self, overlap_seconds: int) -> None:
        """
        Raise ValidationError if a credential was rotated before or has ended, or the overlap is not from 0 to 30 days.
        """
        what = str(self._meta.verbose_name)
        if not 0 <= overlap_seconds <= MAX_OVERLAP_SECONDS:
            message = f"Must be from 0 to {MAX_OVERLAP_SECONDS} seconds (30 days), got {overlap_seconds}."
            raise ValidationError({"overlap_seconds": message})
        if self.replaced_by_id:
            raise ValidationError(f"This {what} was already rotated to {self.replaced_by_id}.", "already_rotated")
        if not self.is_live:
            message = f"This {what} is {self.status}. Only an active {what} can be rotated."
            raise ValidationError(message, f"{what.replace(' ', '_')}_not_live")

    def renewed_end(self, now: datetime) -> datetime | None:
        """Return the end of a credential that replaces this one and has its life span, or None if this one has none."""
        return self.expires_at and now + (self.expires_at - self.created_at)

    def retire(self, now: datetime, end: datetime) -> None:
        """Revoke this credential if *end* is not after *now*, else save the earlier of *end* and its own end."""
        if end <= now:
            self.revoked_at = now
        else:
            self.expires_at = min(end, self.expires_at or end)
        self.save(update_fields=self.RETIRING)

    def set_secret(self, kind: str) -> str:
        """Set a new secret of this credential without saving, and return the secret, which cannot be read again."""
        secret = tokens.mint(kind)
        self.digest, self.prefix = tokens.digest(secret), secret[: tokens.PREFIX_LENGTH]
        self.secret_end = secret[-tokens.END_LENGTH :]
        return secret


class TokenQuerySet(CredentialQuerySet["Token"]):
    def with_label(self, name: str, value: str | None = None) -> Self:
        """Return a query of the tokens that have this label, for None with any value."""
        if value is None:
            return self.filter(labels__has_key=name)
        if connection.vendor == "postgresql":  # which has an index for this operator
            return self.filter(labels__contains={name: value})
        # Not by a keyword, because the name of a label may have two underscores.
        return self.filter(Exact(KeyTextTransform(name, "labels"), value))


_TokenManager = models.Manager.from_queryset(TokenQuerySet)


class TokenManager(_TokenManager["Token"]):
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
        token.check_rotation(overlap_seconds)
        now = timezone.now()
        expires_at = token.renewed_end(now)
        # The name of an old token may break the present rule, which is no reason to keep its secret in use.
        name = escaped(token.name)[:200]
        same = {"policy": token.policy, "labels": token.labels}
        issued = self.issue(token.project, name=name, expires_at=expires_at, **same)
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

    # The day of the last use in UTC. An index of the instant itself would have to be written at each use.
    last_used_on = models.DateField(null=True, editable=False)

    objects = TokenManager()

    class Meta(Credential.Meta):
        indexes = TOKEN_INDEXES

    def clean(self) -> None:
        """Raise ValidationError with every rule that the token breaks."""
        errors: dict[str, Any] = {}
        for check in (super().clean, self.check_policy, self.check_labels):
            try:
                check()
            except ValidationError as exc:
                errors = exc.update_error_dict(errors)
        if errors:
            raise ValidationError(errors)

    def check_policy(self) -> None:
        """Raise ValidationError for a policy that belongs to another project."""
        if self.policy and self.policy.project_id not in (None, self.project_id):
            raise ValidationError({"policy": "Must not be a policy of another project."})

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

    def as_record(self) -> dict[str, Any]:
        fields = {"project": self.project_id, "name": self.name, "prefix": self.prefix, "policy": self.policy_id}
        labels = {"labels": self.labels} if self.labels else {}
        ends = {"expires_at": isoformat(self.expires_at), "revoked_at": isoformat(self.revoked_at)}
        return {"id": self.pk, **fields, **labels, **ends}

    def as_compared(self) -> dict[str, Any]:
        """Return what an ETag of this row stands for: its record, and its suspension, which is another row."""
        found = getattr(self, "suspension", None)
        more = {"suspension": [found.pk, isoformat(found.ends_at)]} if found else {}
        return {**self.as_record(), **more}

    def touches(self) -> Iterator[tuple[str, str]]:
        # The digest names the key in the store, and after a deletion the id does not lead to it.
        yield "token", self.digest

    def dependents(self) -> Iterator[RecordedModel]:
        """Yield the overrides of this token, which are deleted with this row."""
        yield from self.overrides.select_related("limit__policy")
