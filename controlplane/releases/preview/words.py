"""Sentences of previews."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy, which only a preview needs
    from controlplane.releases.preview.previews import Preview, Range

NO_DATA = "No data: nothing was recorded for the callers of this policy."
NOT_JUDGED = "No data: recorded usage cannot judge this."
UNREAD = "No preview now, because what is recorded of requests cannot be read. The change does not depend on it."
SHADOW = "A day in shadow gives an answer."


def span_of(preview: Preview) -> str:
    """Return the span of a preview, such as "24 hours" or "7 days"."""
    hours = round((preview.ends - preview.starts).total_seconds() / 3600)
    if hours % 24 < 2 and hours >= 48:
        return f"{hours // 24} days"
    hours = 24 if hours == 25 else max(1, hours)  # the first hour is whole, the last one is not over
    return "hour" if hours == 1 else f"{hours} hours"


def percent(part: int, whole: int) -> str:
    """Return a share such as "4.0 %"."""
    if not whole:
        return "no data"
    share = 100 * part / whole
    return f"{share:.1f} %" if part == 0 or share >= 0.1 else "under 0.1 %"


def _of(number: Range, whole: int, noun: str) -> str:
    noun = noun if whole == 1 else f"{noun}s"
    if number.is_exact:
        return f"{number.likely:,} of {whole:,} {noun}"
    return f"about {number.likely:,} of {whole:,} {noun} ({number.low:,} to {number.high:,})"


def sentence(preview: Preview, *, shadow: bool = True) -> str:
    """
    Return the first sentence of a preview, or that there is no data.

    Args:
        shadow: Whether a limit in shadow could find out what the preview cannot tell.
    """
    if preview.is_unread:
        return UNREAD
    if not preview.has_data:
        if preview.callers and not preview.unknown:
            return f"No limit denies anything, so none of the requests in the last {span_of(preview)} would be limited."
        nothing = NOT_JUDGED if preview.unknown and (preview.callers or not preview.concerned) else NO_DATA
        return f"{nothing} {SHADOW}" if shadow else nothing
    if preview.is_summary:
        return (
            f"In the last {span_of(preview)} at most {preview.caught.high:,} of {preview.callers:,} callers would have "
            "been limited. They are too many to replay at once. Replay them as a job, or choose a shorter span."
        )
    callers = _of(preview.caught, preview.callers, "caller")
    requests = _of(preview.denied, preview.requests, "request")
    return f"In the last {span_of(preview)} {callers} and {requests} would have been limited."


def resolution(preview: Preview) -> str:
    """Return how exact a preview is, as sentences."""
    if not preview.has_data or preview.is_summary:
        return ""
    if preview.is_exact:
        how = "Exact for these limits, by the code that enforces."
    elif preview.is_point:
        how = "Replayed by the code that enforces. It would be exact, but for what follows."
    else:
        grain = "the minute" if preview.step == 60 else "ten seconds"
        how = (
            f"Replayed by the code that enforces, from usage kept by {grain}. The order of requests within that is not "
            f"known: the true number lies between {preview.denied.low:,} and {preview.denied.high:,}"
            f"{', but for what follows' if preview.cautions else ''}."
        )
    return f"{how} Requests count at the first try: callers that retry after a denial are denied more often."


def gaps(preview: Preview) -> list[str]:
    """Return what the preview does not know, as sentences."""
    result = list(preview.cautions)
    if preview.silent and preview.callers:
        sent = "caller sent" if preview.silent == 1 else "callers sent"
        result.append(f"{preview.silent:,} {sent} nothing: no data, not “fine”.")
    if preview.overrides:
        with_one = "caller has an override and is" if preview.overrides == 1 else "callers have an override and are"
        result.append(f"{preview.overrides:,} {with_one} judged by it.")
    return result
