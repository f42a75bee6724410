from django.apps import AppConfig


class ProjectsConfig(AppConfig):
    name = "controlplane.projects"
    label = "projects"
    verbose_name = "Projects"
    default_auto_field = "django.db.models.BigAutoField"
    job_modules = ("controlplane.projects.api", "controlplane.projects.bulk")
