from django.db import migrations, models

import controlplane.core.partitions


def _once(holder: str, *more: str) -> models.UniqueConstraint:
    values = " and value" if more else ""
    return models.UniqueConstraint(
        fields=["limit", holder, *more],
        condition=models.Q(ended_at=None),
        name=f"policies_override_once_a_{holder}",
        violation_error_message=f"This {holder} has an override of this limit{values} already.",
    )


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
    ]
