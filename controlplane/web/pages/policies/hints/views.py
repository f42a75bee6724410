"""The address that the form of a policy asks while somebody types."""

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from controlplane.objects.people.scope import projects_of
from controlplane.objects.policies.models import Policy
from controlplane.web.pages.policies.hints.form import advise


@never_cache
@require_POST
def advice(request: HttpRequest) -> HttpResponse:
    """
    Return, as JSON, a sentence on each limit in a form, its errors and warnings, and what a sample request matches.

    The rules are those that save the limits.
    """
    page = admin.site.get_model_admin(Policy)
    key = request.POST.get("policy", "")
    policy = page.get_queryset(request).filter(pk=key).first()
    if key and policy is None:
        raise Http404
    if not (page.has_change_permission(request, policy) if policy else page.has_add_permission(request)):
        raise PermissionDenied
    found = advise(policy or Policy(), request.POST.dict(), projects_of(request.user), timezone.now())
    return JsonResponse(found)
