from django.apps import AppConfig


class ProjectsConfig(AppConfig):
    name = "controlplane.objects.projects"
    label = "projects"
    verbose_name = "Projects"
    default_auto_field = "django.db.models.BigAutoField"
    job_modules = ("controlplane.web.rest.projects", "controlplane.operations.jobs.many_tokens")
