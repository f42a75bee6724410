"""Check every claim against the ledgers, and against the counters of the store if they were read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from enforcement.proof import quota_claims, time_claims
from enforcement.proof.evidence import Claim, CounterReading, Evidence


def judge(evidence: Evidence, readings: Sequence[CounterReading] = ()) -> list[Claim]:
    """Check every claim and return all of them, held or broken."""
    claims = [_unique_ids(evidence)]
    for name, limit, counters in evidence.by_limit():
        claims += quota_claims.admitted(evidence, name, limit, counters)
        claims += quota_claims.admitted_alone(evidence, name, limit, counters)
        if evidence.terms.saturated:
            claims += quota_claims.saturated(name, limit, counters)
    claims += quota_claims.charged(evidence, readings)
    claims += [time_claims.in_time(evidence), time_claims.in_vain(evidence), time_claims.while_away(evidence)]
    claims += [time_claims.back_in_time(evidence), _revisions(evidence)]
    return [*claims, *_figures(evidence)]


def _unique_ids(evidence: Evidence) -> Claim:
    """Return the claim that no request id occurs twice. Every other claim would count such a decision twice."""
    twice = len(evidence.records) - len({record.id for record in evidence.records})
    return Claim("duplicate request ids", "0", f"{twice} of {len(evidence.records)}", twice == 0)


def _revisions(evidence: Evidence) -> Claim:
    """Return the claim that no process went back to an older revision."""
    back = sum(
        later.revision < earlier.revision for ledger in evidence.ledgers for earlier, later in pairwise(ledger.records)
    )
    newest = max((record.revision for record in evidence.records), default=0)
    return Claim("older revisions obeyed after newer ones", "0", f"{back} (newest: {newest})", back == 0)


def _figures(evidence: Evidence) -> Iterator[Claim]:
    """Yield claims that are only printed, because no figure in them is wrong."""
    total = len(evidence.records) or 1
    sources = Counter(record.source for record in evidence.records)
    yield Claim("decided by", "any", ", ".join(f"{name} {count}" for name, count in sources.most_common()) or "nobody")
    degraded = sources["fallback"]
    causes = Counter(record.cause for record in evidence.records if record.cause)
    why = ", ".join(f"{name} {count}" for name, count in causes.most_common())
    yield Claim("decided without the store", "any", f"{100 * degraded / total:.2f} %{f' ({why})' if why else ''}")
    changes = sum(a.degraded != b.degraded for ledger in evidence.ledgers for a, b in pairwise(ledger.records))
    yield Claim("changes between the store and the process", "any", f"{changes} in {len(evidence.ledgers)} processes")
