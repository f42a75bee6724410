from controlplane.operations.alerts.models import AlertEvent
from controlplane.operations.alerts.run import evaluate
from tests.controlplane.operations.explain.conftest import issue, start_limiter, use  # noqa: F401  (fixtures)
from tests.controlplane.operations.webhooks.conftest import receiver, webhook  # noqa: F401  (fixtures)

__all__ = ["evaluate", "listed"]


def listed(**lookup) -> list[tuple[str, int]]:
    """Return the state and the level of each event, the first one first."""
    return list(AlertEvent.objects.filter(**lookup).order_by("at", "id").values_list("state", "level"))
