import json
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone
from django.utils.functional import cached_property

from controlplane.core.ids import new_id
from controlplane.core.records import RecordedModel
from controlplane.core.tables.counting import CappedCount, as_capped
from controlplane.core.text import PRINTABLE, PRINTABLE_LINES
from controlplane.core.versions import Versioned
from controlplane.objects.projects.models import SLUG_RULE, Project, Token
from enforcement.model.calendars import CALENDARS
from enforcement.model.limit_fields import BY_NAME, FIELDS, Field
from enforcement.model.limits import ALGORITHMS, CONSISTENCIES, MODES, STORE_FAILURES, InvalidLimit
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.metered import CHARGE_AS, DEFAULT_METERING, DENY, UNMETERED, InvalidMetering, Metering
from enforcement.model.sizes import MAX_DOCUMENT_BYTES, MAX_LIMITS_PER_POLICY

# The choices for a model without a price. To charge it as another one, a limit names that one.
UNPRICED = (*UNMETERED, CHARGE_AS)

# The default of each field of a limit, as in JSON. An older enforcer refuses a document with a field that it does not
# know, so a field with its default is left out.
DEFAULTS = {field.name: field.default for field in FIELDS}
# Leaves room in the document for the fields of the policy itself, such as its name.
MAX_POLICY_BYTES = MAX_DOCUMENT_BYTES - 4096


def choices(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return pairs of each name and its label, for the choices of a field."""
    return [(name, name.replace("_", " ")) for name in names]


def column_of(field: str) -> str:
    """
    Return the column that holds *field* of the value, such as ``match_path`` for ``match.path``, else ``__all__``.
    """
    head, _, rest = field.partition(".")
    if head not in BY_NAME:
        return "__all__"
    columns = columns_of(BY_NAME[head])
    parts = [part.name for part in BY_NAME[head].parts]
    return dict(zip(parts, columns, strict=True)).get(rest.partition(".")[0], columns[-1]) if parts else head


def columns_of(field: Field) -> tuple[str, ...]:
    """Return the columns that hold a field of the value."""
    return field.columns or (field.name,)


class Uses(NamedTuple):
    """The numbers of tokens and projects that have a policy. Each is a MoreThan if there are more than 10,000."""

    tokens: int = 0
    projects: int = 0
    anonymous: int = 0
    default: int = 0


class Policy(Versioned):
    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "pol"), editable=False)
    slug = models.CharField(max_length=63, unique=True, validators=[SLUG_RULE])
    name = models.CharField(max_length=200, validators=[PRINTABLE])
    description = models.TextField(blank=True, max_length=4000, validators=[PRINTABLE_LINES])
    project = models.ForeignKey(
        Project,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="policies",
        help_text="The project that owns the policy. If empty, all projects share it.",
    )
    is_global = models.BooleanField(default=False, editable=False)
    metering = models.JSONField(default=dict, blank=True, db_default={})
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["slug"]
        verbose_name_plural = "policies"
        constraints = [
            models.UniqueConstraint(
                fields=["is_global"], condition=models.Q(is_global=True), name="policies_one_global_policy"
            )
        ]

    def __str__(self) -> str:
        return self.slug

    @cached_property
    def uses(self) -> Uses:
        """How many have this policy, of projects also for requests without a token, and for new tokens."""
        return self.uses_of([self])[self.pk]

    @classmethod
    def uses_of(
        cls, policies: Iterable["Policy"], projects: "models.QuerySet[Project] | None" = None
    ) -> dict[str, Uses]:
        """Return the uses of all these policies by their ids with one query, in some projects, or in all for None."""
        keys, outer = [policy.pk for policy in policies], models.OuterRef("pk")
        within = {} if projects is None else {"project__in": projects.values("pk")}
        seen = Project.objects.all() if projects is None else projects
        columns = ("policy", "anonymous_policy", "token_policy")
        counts = [CappedCount(Token.objects.filter(policy=outer, **within))]
        counts += [CappedCount(seen.filter(**{column: outer})) for column in columns]
        names = [f"count_{number}" for number in range(len(counts))]
        rows = cls.objects.filter(pk__in=keys).order_by()
        rows = rows.annotate(**dict(zip(names, counts, strict=True)))
        found = {pk: Uses(*map(as_capped, numbers)) for pk, *numbers in rows.values_list("pk", *names)}
        return {pk: found.get(pk, Uses()) for pk in keys}

    def clean(self) -> None:
        # A new one, of which a request may create 1,000, has no row to compare it with.
        former = () if self._state.adding else Policy.objects.filter(pk=self.pk).values_list("project", flat=True)
        if former and former[0] != self.project_id:
            # Tokens of other projects may use the policy already.
            message = "Must not be changed after the creation."
            raise ValidationError({"project": ValidationError(message, code="immutable")})
        if self.is_global and self.project_id:
            raise ValidationError({"project": "Must be empty, because the global policy applies to every project."})
        try:
            self.metering = Metering.from_json(self.metering).to_json()
        except InvalidMetering as exc:
            raise ValidationError({"metering": str(exc)}) from exc

    @property
    def rules(self) -> Metering:
        """How its requests are metered. The defaults if another program has written what enforcers refuse."""
        try:
            return Metering.from_json(self.metering)
        except InvalidMetering:
            return DEFAULT_METERING

    def as_record(self, limits: "Collection[Limit] | None" = None) -> dict[str, Any]:
        fields = {"slug": self.slug, "name": self.name, "description": self.description, "project": self.project_id}
        shown = [limit.as_value().to_json() for limit in (self.limits.all() if limits is None else limits)]
        more = {"metering": self.metering} if self.metering else {}
        more |= {"managed_by": self.managed_by} if self.managed_by else {}
        return {"id": self.pk, **fields, **more, "is_global": self.is_global, "version": self.version, "limits": shown}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield one pair, "policy" and this row's id, for the outbox entry that a change of this row needs."""
        yield "policy", self.pk

    def dependents(self) -> Iterator[RecordedModel]:
        """Yield the overrides of this policy's limits, which are deleted together with this row. Its drafts stay."""
        for limit in self.limits.all():
            yield from limit.dependents()

    def advance(self) -> None:
        super().advance()
        self.save(update_fields=["updated_at"])


class Limit(RecordedModel):
    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "lim"), editable=False)
    policy = models.ForeignKey(Policy, models.CASCADE, related_name="limits")
    position = models.PositiveIntegerField(default=0)
    name = models.CharField(max_length=64)
    algorithm = models.CharField(max_length=20, choices=choices(ALGORITHMS), default="fixed_window")
    quota = models.BigIntegerField()
    window_seconds = models.BigIntegerField(null=True, blank=True)
    calendar = models.CharField(max_length=10, choices=choices(CALENDARS), blank=True)
    time_zone = models.CharField(max_length=64, default="UTC")
    anchor = models.CharField(max_length=10, blank=True)
    burst = models.BigIntegerField(null=True, blank=True)
    rollover = models.BigIntegerField(null=True, blank=True)
    unit = models.CharField(max_length=64, default="requests")
    partition_by = models.JSONField(default=list, blank=True)
    match_methods = models.JSONField(default=list, blank=True)
    match_path = models.CharField(max_length=1024, blank=True)
    match_attributes = models.JSONField(default=dict, blank=True)
    mode = models.CharField(max_length=10, choices=choices(MODES), default="enforce")
    consistency = models.CharField(max_length=10, choices=choices(CONSISTENCIES), default="strict")
    on_store_failure = models.CharField(max_length=10, choices=choices(STORE_FAILURES), default="local")
    charge_on = models.JSONField(default=list, blank=True)
    # Defaults of the database too, because an earlier version may still write rows during an upgrade.
    weights = models.JSONField(default=dict, blank=True, db_default={})
    unpriced = models.CharField(max_length=10, choices=choices(UNPRICED), default=DENY, db_default=DENY)
    charge_as = models.CharField(max_length=256, blank=True, default="", db_default="", validators=[PRINTABLE])
    unmetered = models.CharField(max_length=10, choices=choices(UNMETERED), default=DENY, db_default=DENY)

    # Set while a roll-back restores the limit from a document, which may be one that only an earlier version accepts.
    restored = False

    class Meta:
        ordering = ["position", "id"]
        constraints = [models.UniqueConstraint(fields=["policy", "name"], name="policies_limit_name_once_a_policy")]

    def __str__(self) -> str:
        return f"{self.policy.slug}/{self.name}"

    def clean(self) -> None:
        self.check_alone()
        self.check_together([*Limit.objects.filter(policy=self.policy_id).exclude(pk=self.pk), self])

    def check_alone(self) -> None:
        """Raise ValidationError if an enforcer would refuse the limit. The rules are those of the library's value."""
        try:
            LimitValue.from_json(self.as_json(), published=self.restored)
        except InvalidLimit as exc:
            raise ValidationError({column_of(exc.field): exc.reason}) from exc
        if self.charge_as and self.unpriced != CHARGE_AS:
            raise ValidationError({"charge_as": "Must be empty, unless unpriced models are charged as another one."})

    @staticmethod
    def check_together(limits: "Collection[Limit]") -> None:
        """Raise ValidationError if a policy with these limits would not fit into one document."""
        if len(limits) > MAX_LIMITS_PER_POLICY:
            raise ValidationError(f"A policy must have at most {MAX_LIMITS_PER_POLICY} limits.")
        if len(json.dumps([limit.as_json() for limit in limits])) > MAX_POLICY_BYTES:
            raise ValidationError(f"The limits of a policy must have at most {MAX_POLICY_BYTES} characters of JSON.")

    def as_json(self) -> dict[str, Any]:
        """Return the limit as JSON values, as its document writes it, without empty fields."""
        values = {name: self._json_of(BY_NAME[name]) for name in DEFAULTS}
        given = {name: value for name, value in values.items() if value not in (None, "", [], {}, DEFAULTS[name])}
        return {**given, "algorithm": self.algorithm}

    def _json_of(self, field: Field) -> Any:
        if field.parts:
            parts = zip(field.parts, (getattr(self, column) for column in field.columns), strict=True)
            return {part.name: value for part, value in parts if value not in ("", [], {})}
        value = getattr(self, field.name)
        return {CHARGE_AS: self.charge_as} if field.name == "unpriced" and value == CHARGE_AS else value

    def as_value(self, **changed: Any) -> LimitValue:
        """
        Return the limit as a new value of the library, with *changed* fields, or raise InvalidLimit.

        Raises:
            InvalidLimit: The limit is not valid. ``field`` and ``reason`` say why.
        """
        # The row may be one that only an earlier version accepts.
        return LimitValue.from_json({**self.as_json(), **changed}, published=True)

    def assign(self, value: LimitValue) -> None:
        """Copy every field of *value* to this row, without saving it. The position and the policy stay."""
        given, columns = value.to_json(), {column.name: column for column in self._meta.concrete_fields}
        for field in FIELDS:
            for name, content in zip(columns_of(field), _in_columns(field, given.get(field.name)), strict=True):
                setattr(self, name, columns[name].get_default() if content is None else content)

    def as_record(self) -> dict[str, Any]:
        return {"id": self.pk, "policy": self.policy_id, "position": self.position, **self.as_json()}

    def audited_project(self, before: object, after: object) -> str | None:
        return self.policy.project_id

    def touches(self) -> Iterator[tuple[str, str]]:
        yield "policy", self.policy_id

    def dependents(self) -> Iterator[RecordedModel]:
        yield from self.overrides.select_related("token", "project")

    @property
    def whole(self) -> Policy:
        """The policy of this limit, whose version also counts changes of its limits."""
        return self.policy


def _in_columns(field: Field, value: Any) -> list[Any]:
    """Return what each column of a field holds of its value, None for the default."""
    if field.parts:
        return [(value or {}).get(part.name) for part in field.parts]
    if field.name == "unpriced":
        return [CHARGE_AS, value[CHARGE_AS]] if isinstance(value, dict) else [value, None]
    return [str(value) if field.name == "anchor" and value is not None else value]
