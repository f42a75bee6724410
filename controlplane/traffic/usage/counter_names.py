"""The present names of the durable counters that enforcers of 0.2 kept under other names."""

from collections.abc import Iterator

from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from enforcement.model.keys import GLOBAL_TAG, Identity, counter_name, earlier_name
from enforcement.model.limits import Limit as LimitValue


def present_names(tag: str) -> dict[str, str]:
    """
    Return the present name of each durable counter with a hash tag, by the name that 0.2 gave to it.

    The values of a partitioned limit are not known here, so only the counter that many values share is returned. The
    enforcer that first meets a value carries its count over.
    """
    return {
        earlier_name(limit, identity): counter_name(limit, identity)
        for limit, attached in _attached(tag)
        for identity in _identities(limit, attached, tag)
    }


def _attached(tag: str) -> Iterator[tuple[LimitValue, Identity]]:
    """Yield each durable limit with the scope, the holder, the policy and the name of its counters."""
    if tag == GLOBAL_TAG:
        policies = Policy.objects.filter(is_global=True).values_list("pk", flat=True)
        holders = [("global", "", policy) for policy in policies]
    else:
        projects = Project.objects.filter(pk=tag, policy__isnull=False).values_list("pk", "policy")
        tokens = Token.objects.filter(project=tag, policy__isnull=False).values_list("pk", "policy")
        holders = [("project", *row) for row in projects] + [
            ("token", *row) for row in tokens.iterator(chunk_size=2000)
        ]
    limits = {policy: _durable(policy) for policy in {policy for _, _, policy in holders}}
    for scope, holder, policy in holders:
        for limit in limits[policy]:
            yield limit, (scope, holder, policy, limit.name)


def _durable(policy: str) -> list[LimitValue]:
    values = (limit.as_value() for limit in Limit.objects.filter(policy=policy))
    return [value for value in values if value.durable]


def _identities(limit: LimitValue, attached: Identity, tag: str) -> Iterator[Identity]:
    if not limit.partition_by:
        yield attached
        return
    projects = Project.objects.values_list("pk", flat=True) if tag == GLOBAL_TAG else [tag]
    for project in projects:
        yield ("overflow", project, *attached)
