from django.db import migrations

NAME = "operators"


def create_group(apps, schema_editor):
    """Create the group of operators, without members. A group that already had this name keeps its own purpose."""
    groups = apps.get_model("auth", "Group").objects.using(schema_editor.connection.alias)
    for former in groups.filter(name=NAME):
        former.name = f"{NAME} before roles"
        former.save(update_fields=["name"])
    groups.create(name=NAME)


def delete_group(apps, schema_editor):
    """Delete the group of operators, whose name meant nothing before."""
    apps.get_model("auth", "Group").objects.using(schema_editor.connection.alias).filter(name=NAME).delete()


class Migration(migrations.Migration):
    dependencies = [("access", "0001_memberships"), ("auth", "0012_alter_user_first_name_max_length")]

    operations = [migrations.RunPython(create_group, delete_group)]
