from functools import partial

from django.db import migrations
from django.db.models import Sum
from django.db.models.functions import TruncMonth

COUNTS = ("allowed", "denied", "would_deny", "cost")
METERED = ("requests", "input", "cached_input", "cache_write", "output", "micros", "calls")
AT_ONCE = 1000


def fill(apps, schema_editor):
    """
    Add up the days of earlier releases to months.

    It is exact, because days and the months of all projects are in UTC before this release.
    """
    _fill(apps, "UsageRow", "MonthRow", ("project_id", "token_id", "policy_id", "limit_name", "unit"), COUNTS)
    _fill(apps, "MeteredRow", "MonthMetered", ("project_id", "token_id", "model"), METERED)


def _fill(apps, source, target, names, counts):
    days = apps.get_model("usage", source).objects.filter(period="day").order_by()
    rows = days.annotate(month_at=TruncMonth("at")).values("month_at", *names)
    sums = rows.annotate(**{f"sum_{count}": Sum(count) for count in counts})
    model, kept = apps.get_model("statements", target), []
    # A month that is there already has the later counts. This is not undone on the way back, and may run again.
    save = partial(model.objects.bulk_create, ignore_conflicts=True)
    for row in sums.iterator(chunk_size=AT_ONCE):
        key = {name: row[name] for name in names}
        kept.append(model(month=row["month_at"].date(), **key, **{name: row[f"sum_{name}"] for name in counts}))
        if len(kept) == AT_ONCE:
            save(kept)
            kept = []
    save(kept)


class Migration(migrations.Migration):
    dependencies = [
        ("statements", "0001_initial"),
        ("usage", "0008_calls"),
    ]

    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
