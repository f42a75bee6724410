"""A batch of usage, as it is delivered to the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple


class OutgoingBatch(NamedTuple):
    """
    Rows to deliver.

    Attributes:
        id: Identifies the batch for ever, so that a receiver recognizes a second copy.
        instance: The instance that counted.
        rows: A JSON list of [minute since the epoch, project, token, policy or "", limit or "", unit, allowed, denied,
            would_deny, cost]. The token of requests without one is "". The cost is negative if a settlement gave back
            what an earlier batch had counted. In a row without a limit, would_deny counts each admitted request once
            that a shadow limit would have denied.
        metered: A JSON list of the rows of a :class:`~enforcement.metering.tally.MeteredTally`. Empty: there are none.
        spread: A JSON list that says when the requests of rows without a limit came, as
            :meth:`~enforcement.usage.spread.SpreadLog.take` returns it. Empty: nothing is known.
        broken: A JSON list of the rows of :class:`~enforcement.metering.broken.BrokenBounds`. Empty: there are none.
        samples: A JSON list of the rows of :class:`~enforcement.metering.samples.FeatureSums`. Empty: there are none.
        shard: The number of the shard to which all rows belong. None: the rows are of any shard.
    """

    id: str
    instance: str
    rows: str
    metered: str = ""
    spread: str = ""
    broken: str = ""
    samples: str = ""
    shard: int | None = None

    def fields(self) -> dict[str, str]:
        """Return the fields of its entry in the stream. Those that are empty are left out."""
        more = {"metered": self.metered, "spread": self.spread, "broken": self.broken, "samples": self.samples}
        return {
            "id": self.id,
            "instance": self.instance,
            "rows": self.rows,
            **{name: value for name, value in more.items() if value},
        }


def as_json(rows: Sequence[object]) -> str:
    """Return rows as the store gets them."""
    # Escapes would make each character of a model's name up to twelve times as long, and the entry too long to be read.
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
