from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controlplane.changes.audit.models import AuditEntry

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.fixture
def entry(db: None) -> Callable[..., AuditEntry]:
    """``entry(3)``: an audit entry of three minutes past noon."""

    def write(minute: int, **fields: Any) -> AuditEntry:
        named = {"actor": "ann", "channel": "admin", "action": "token.update", "object_type": "token"}
        record = {"name": f"web-{minute}", "share": 0.1, "labels": {"b": 1, "a": "ü"}}
        given = {**named, "object_id": "tok_1", "object_label": "web", "before": None, "after": record, **fields}
        return AuditEntry.objects.create(id=f"aud_{minute:06d}", at=NOON + timedelta(minutes=minute), **given)

    return write
