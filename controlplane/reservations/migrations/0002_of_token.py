from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("reservations", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="reservationcount",
            name="of_token",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
    ]
