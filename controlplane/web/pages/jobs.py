"""The list of jobs, and the page that shows the progress of one."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display

from controlplane.objects.people.scope import projects_of
from controlplane.operations.jobs.actions import cancel_job
from controlplane.operations.jobs.models import CANCELLED, DONE, FAILED, RUNNING, WAITING, Job
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.parts import View
from controlplane.web.kit.site import badge, change_url, instant
from controlplane.web.scope.rows import RowScope, Visitor

STATES = {WAITING: "", RUNNING: "warn", DONE: "good", FAILED: "bad", CANCELLED: ""}


def _of_members(rows: QuerySet[Job], user: Visitor, kind: str) -> QuerySet[Job]:
    """Return the user's own jobs, without those about a project that they have left since."""
    return rows.filter(user=user.pk).within(projects_of(user))


@admin.register(Job)
class JobAdmin(PartsPage):
    """Each user sees the jobs that they have started, and operators see all of them."""

    scope = RowScope(members=_of_members)
    list_display = ["title", "condition", "progress", "created_by", "created"]
    list_display_links = ["title"]
    list_filter = [("state", ChoicesDropdownFilter)]
    search_fields = ["title"]
    empty = ("Work on many rows runs as a job. Those that you start appear here.", "")

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Job | None = None) -> bool:
        return request.user.is_active and request.user.is_staff

    @display(description="State", ordering="state")
    def condition(self, job: Job) -> str:
        return badge(job.state, STATES[job.state])

    @display(description="Done")
    def progress(self, job: Job) -> str:
        return f"{job.done:,} of {job.total:,}" if job.total else f"{job.done:,}"

    @display(description="Started", ordering="created_at")
    def created(self, job: Job) -> str:
        return instant(job.created_at)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        job = self._visible(request, self.key_of(object_id))
        return self.page(request, "job.html", title=job.title, job=job, badge=self.condition(job))

    def progress_view(self, request: HttpRequest, pk: str) -> HttpResponse:
        job = self._visible(request, pk)
        text = render_to_string("admin/sluicegate/job_progress.html", {"job": job, "badge": self.condition(job)})
        return HttpResponse(text, headers={"Cache-Control": "no-store"})

    def cancel_view(self, request: HttpRequest, pk: str) -> HttpResponse:
        job = self._visible(request, pk)
        with self.changing(request) as tx:
            cancelled = cancel_job(tx, job)
        if cancelled:
            messages.success(request, "The job is cancelled. What it has done until now stays done.")
        else:
            messages.warning(request, "The job has ended already, so there was nothing to cancel.")
        return HttpResponseRedirect(change_url(job))

    views = (
        View(path="<str:pk>/progress/", name="progress", answer=progress_view, method="GET"),
        View(path="<str:pk>/cancel/", name="cancel", answer=cancel_view, method="POST"),
    )

    def _visible(self, request: HttpRequest, pk: str) -> Job:
        """Return the job, or raise Http404 if there is none that the user may see."""
        job = self.get_queryset(request).filter(pk=pk).first()
        if job is None:
            raise Http404
        return job
