from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.objects.projects.models import Token
from controlplane.traffic.callers.models import RecordedMinute

NOW = datetime(2026, 11, 24, 15, 0, tzinfo=UTC)


@pytest.fixture
def sent(db: None) -> Callable[..., None]:
    """Record requests of a token: ``sent(token, 30, minutes_ago=5, part=2)``, all in one second of its ten."""

    def record(token: Token, requests: int, minutes_ago: int = 5, part: int = 0, now: datetime = NOW) -> None:
        parts = {f"part_{part}": requests}
        at = now.replace(second=0, microsecond=0) - timedelta(minutes=minutes_ago)
        RecordedMinute.objects.create(
            project_id=token.project_id,
            token_id=token.pk,
            at=at,
            allowed=requests,
            cost=requests,
            seconds=1 << 10 * part,
            **parts,
        )

    return record
