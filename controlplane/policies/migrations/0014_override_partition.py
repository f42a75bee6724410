from django.db import migrations, models
from django.utils import timezone

import controlplane.core.partitions


def _once(holder: str, *more: str) -> models.UniqueConstraint:
    values = " and value" if more else ""
    return models.UniqueConstraint(
        fields=["limit", holder, *more],
        condition=models.Q(ended_at=None),
        name=f"policies_override_once_a_{holder}",
        violation_error_message=f"This {holder} has an override of this limit{values} already.",
    )


def end_those_of_values(apps, schema_editor):
    """End the overrides for one value, which an earlier version would take for those of all values."""
    rows = apps.get_model("policies", "Override")._base_manager.filter(ended_at=None).exclude(partition="")
    rows.update(ended_at=timezone.now())


class Migration(migrations.Migration):
    dependencies = [("policies", "0013_managed_overrides")]

    operations = [
        migrations.AddField(
            model_name="override",
            name="partition",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                max_length=600,
                validators=[controlplane.core.partitions.check_values],
            ),
        ),
        *(
            operation
            for holder in ("token", "project")
            for operation in (
                migrations.RemoveConstraint("override", f"policies_override_once_a_{holder}"),
                migrations.AddConstraint("override", _once(holder, "partition")),
            )
        ),
        migrations.RunPython(migrations.RunPython.noop, end_those_of_values),
    ]
