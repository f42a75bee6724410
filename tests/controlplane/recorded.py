"""What a change leaves behind in SQL."""

from controlplane.changes.audit.models import AuditEntry
from controlplane.releases.publishing.models import OutboxEntry


def audited_actions() -> list[str]:
    return list(AuditEntry.objects.order_by("id").values_list("action", flat=True))


def outbox() -> set[tuple[str, str]]:
    """Return the kind and id of each document that is still to be published."""
    return set(OutboxEntry.objects.values_list("kind", "object_id"))
