"""The page on which users change the own password, with an audit entry."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import path

from controlplane.changes.change.transaction import change
from controlplane.objects.people.records import Recorded
from controlplane.web.kit.site import actor_of, user_of


def own_password_view(request: HttpRequest) -> HttpResponse:
    """Return the response of Django's page, and record a change of the own password in the audit."""
    if request.method != "POST":
        return admin.site.password_change(request)
    user = user_of(request)
    former, record = user.password, Recorded(user).as_record()
    with change(actor=actor_of(request)) as tx:
        response = admin.site.password_change(request)
        if user.password != former:
            tx.record("user.password", Recorded(user), before=record, after=record)
    return response


# Before the address of Django's page, which has the name that templates use.
urlpatterns = [path("", admin.site.admin_view(own_password_view))]
