"""One factory a model. Each row passes full_clean(), as at every door."""

from datetime import UTC, datetime, timedelta
from typing import Any

import factory
from django.contrib.auth.models import Group, User
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.core.upserts import add_up
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.models import Membership
from controlplane.objects.people.roles import OPERATORS, VIEWER
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.prices.models import LearnedEstimate, ModelPrice
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.alerts.models import AlertRule
from controlplane.operations.webhooks.models import Destination
from controlplane.releases.drafts.models import PolicyDraft
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.stream.batches import COUNTS
from controlplane.traffic.usage.models import DecisionCount, DeniedRequest, UsageRow


class CleanFactory(factory.django.DjangoModelFactory):
    class Meta:
        abstract = True

    @classmethod
    def _create(cls, model_class: type, *args: Any, **fields: Any) -> Any:
        row = model_class(*args, **fields)
        row.full_clean()
        row.save()
        return row


def clean_as_of_old(row: Any, field: str) -> None:
    """Check a row whose end may be over by now, which it was not when somebody set it."""
    row.clean_fields(exclude=[] if getattr(row, field) else [field])
    end = getattr(row, field)
    if end and end <= timezone.now():
        setattr(row, field, None)
    row.full_clean()
    setattr(row, field, end)


class PolicyFactory(CleanFactory):
    class Meta:
        model = Policy

    class Params:
        everywhere = factory.Trait(is_global=True)

    slug = factory.Sequence(lambda n: f"policy-{n}")
    name = factory.Sequence(lambda n: f"Policy {n}")


class PolicyDraftFactory(CleanFactory):
    """A draft of a new policy, or of a change of the one in ``policy``, with the limits in ``limits``."""

    class Meta:
        model = PolicyDraft

    class Params:
        limits = ()

    policy_key = factory.LazyAttribute(lambda made: made.policy.pk if made.policy else new_id("pol"))
    policy = None
    project = factory.LazyAttribute(lambda made: made.policy.project if made.policy else None)
    slug = factory.LazyAttributeSequence(lambda made, n: made.policy.slug if made.policy else f"draft-{n}")
    content = factory.LazyAttribute(
        lambda made: {
            "slug": made.slug,
            "name": made.slug,
            "description": "",
            "metering": {},
            "limits": [limit if isinstance(limit, dict) else limit.as_json() for limit in made.limits],
            "ids": {},
        }
    )
    based_on = factory.LazyAttribute(lambda made: made.policy.version if made.policy else None)
    saved_by = "ann"


class LimitFactory(CleanFactory):
    class Meta:
        model = Limit

    policy = factory.SubFactory(PolicyFactory)
    position = factory.Sequence(int)
    name = factory.Sequence(lambda n: f"limit-{n}")
    algorithm = "fixed_window"
    quota = 100
    window_seconds = 60


class ModelPriceFactory(CleanFactory):
    class Meta:
        model = ModelPrice

    class Params:
        of_the_catalogue = factory.Trait(source="catalogue")

    pattern = factory.Sequence(lambda n: f"model-{n}")
    input = 1_000_000
    output = 4_000_000


class LearnedEstimateFactory(CleanFactory):
    class Meta:
        model = LearnedEstimate

    kind = "group"
    name = factory.Sequence(lambda n: f"other/model-{n}/openai-chat")
    numbers = factory.LazyFunction(lambda: [300_000, 0, 0, 0, 0])
    requests = 60
    projects = 1
    error = 200


class ProjectFactory(CleanFactory):
    class Meta:
        model = Project

    slug = factory.Sequence(lambda n: f"project-{n}")
    name = factory.Sequence(lambda n: f"Project {n}")


class UserFactory(factory.django.DjangoModelFactory):
    """Somebody on the staff. ``operator=True`` may do everything, and nobody else anything without a membership."""

    class Meta:
        model = User
        skip_postgeneration_save = True

    username = factory.Sequence(lambda n: f"user-{n}")
    is_staff = True

    @factory.post_generation
    def operator(self, create: bool, chosen: bool | None, **_: Any) -> None:
        if create and chosen:
            self.groups.add(Group.objects.get_or_create(name=OPERATORS)[0])


class MembershipFactory(CleanFactory):
    class Meta:
        model = Membership

    user = factory.SubFactory(UserFactory)
    project = factory.SubFactory(ProjectFactory)
    role = VIEWER


class DestinationFactory(CleanFactory):
    class Meta:
        model = Destination

    name = factory.Sequence(lambda n: f"webhook-{n}")
    url = "https://alerts.example/hook"


class AlertRuleFactory(CleanFactory):
    """A rule that tells the webhooks in ``told``."""

    class Meta:
        model = AlertRule
        skip_postgeneration_save = True

    name = factory.Sequence(lambda n: f"rule-{n}")
    kind = "usage"

    @factory.post_generation
    def told(self, create: bool, chosen: Any, **_: Any) -> None:
        if create and chosen:
            self.check_destinations(chosen)
            self.destinations.set(chosen)


class CredentialFactory(CleanFactory):
    """The secret of a built row is its attribute ``secret``."""

    class Meta:
        abstract = True

    class Params:
        revoked = factory.Trait(revoked_at=factory.LazyFunction(timezone.now))
        expired = factory.Trait(expires_at=factory.LazyFunction(lambda: timezone.now() - timedelta(minutes=1)))

    @classmethod
    def _create(cls, model_class: type, *args: Any, **fields: Any) -> Any:
        row = model_class(*args, **fields)
        row.secret = row.set_secret("live" if model_class is Token else "mgmt")
        clean_as_of_old(row, "expires_at")
        row.save()
        return row


class TokenFactory(CredentialFactory):
    class Meta:
        model = Token

    project = factory.SubFactory(ProjectFactory)
    name = factory.Sequence(lambda n: f"token-{n}")


class ManagementKeyFactory(CredentialFactory):
    class Meta:
        model = ManagementKey
        skip_postgeneration_save = True

    name = factory.Sequence(lambda n: f"key-{n}")
    scopes = factory.LazyFunction(lambda: ["*"])

    @classmethod
    def _generate(cls, strategy: str, params: dict[str, Any]) -> ManagementKey:
        """A key without projects works for all of them, unless ``all_projects=False`` says that it has lost its own."""
        return super()._generate(strategy, {"all_projects": not params.get("projects"), **params})

    @factory.post_generation
    def projects(self, create: bool, chosen: list[Project] | None, **_: Any) -> None:
        if create and chosen:
            self.projects.set(chosen)


class OverrideFactory(CleanFactory):
    """For a token of its own, unless ``for_project=True`` or a holder is passed."""

    class Meta:
        model = Override

    class Params:
        for_project = factory.Trait(token=None, project=factory.SubFactory(ProjectFactory))
        ended = factory.Trait(ends_at=factory.LazyFunction(lambda: timezone.now() - timedelta(minutes=1)))

    limit = factory.SubFactory(LimitFactory)
    token = factory.SubFactory(TokenFactory)
    quota = 500
    reason = "A launch"

    @classmethod
    def _create(cls, model_class: type, *args: Any, **fields: Any) -> Override:
        """A holder without a policy gets that of the limit, so that the limit applies to it."""
        row = model_class(*args, **fields)
        holder = row.token or row.project
        if holder and holder.policy is None and not row.limit.policy.is_global:
            holder.policy = row.limit.policy
            holder.save(update_fields=["policy"])
        clean_as_of_old(row, "ends_at")
        row.save()
        return row


class InstanceFactory(CleanFactory):
    class Meta:
        model = Instance

    id = factory.Sequence(lambda n: f"proxy-{n}")
    host = "proxy.example"
    pid = 4242
    version = "0.1.0"
    state = "ok"
    started_at = factory.LazyFunction(timezone.now)
    seen_at = factory.LazyFunction(timezone.now)
    decisions = factory.LazyFunction(lambda: {"allowed": 0, "denied": 0, "fallback": 0})


class UsageRowFactory(CleanFactory):
    class Meta:
        model = UsageRow

    period = "minute"
    at = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    project_id = "proj_1"
    token_id = "tok_1"
    unit = "requests"
    allowed = 1
    cost = 1


class CountedUsageFactory(UsageRowFactory):
    """A row of usage that is also in the sum of its project, as the drain counts it."""

    @classmethod
    def _create(cls, model_class: type, *args: Any, **fields: Any) -> Any:
        row = super()._create(model_class, *args, **fields)
        if not row.policy_id and not row.limit_name:
            key = (row.period, row.at, "", row.project_id)
            add_up(DecisionCount, DecisionCount.KEY, COUNTS[:-1], [(key, (row.allowed, row.denied, row.would_deny))])
        return row


class DeniedRequestFactory(CleanFactory):
    class Meta:
        model = DeniedRequest

    decision = factory.Sequence(lambda number: f"dec_{number}")
    at = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    instance = "proxy-1"
    reason = "limited"
    project_id = "proj_1"
    token_id = "tok_1"
