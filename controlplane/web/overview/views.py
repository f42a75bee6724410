"""The pages of a new installation: the first account, and the steps to the first decision."""

import http.client
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth import login
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from unfold.forms import UserCreationForm
from unfold.widgets import UnfoldAdminTextInputWidget

from controlplane.changes.change.transaction import OpenChange, change
from controlplane.core.error_page import error_page
from controlplane.core.requests import request_id
from controlplane.objects.people.scope import is_operator
from controlplane.objects.policies.models import Policy
from controlplane.objects.prices.models import ModelPrice
from controlplane.web.kit.first_steps import steps
from controlplane.web.kit.site import actor_of
from controlplane.web.kit.snippets import UNKNOWN_SECRET, Sample, proxy_url, token_snippets
from controlplane.web.login.first_link import is_valid
from controlplane.web.overview import actions
from controlplane.web.overview.catalogue import templates
from enforcement.model.tokens import is_well_formed

SEND_TIMEOUT_SECONDS = 5
# The proxies of `make up`. A form must not make this server send requests to other hosts.
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


class FirstAccountForm(UserCreationForm):
    """A name and a password twice, checked by the rules for every other account."""

    usable_password = None

    class Meta(UserCreationForm.Meta):
        model = User
        fields = ("username",)
        widgets = {"username": UnfoldAdminTextInputWidget(attrs={"autofocus": True, "autocomplete": "username"})}


@never_cache
@csrf_protect
@sensitive_post_parameters()
@require_http_methods(["GET", "POST"])
def first_account(request: HttpRequest) -> HttpResponse:
    """Return the page that creates the first account, or an error page if the link is old, wrong or used."""
    if not is_valid(request.GET.get("key", "")) or User.objects.exists():
        return _dead_link(request)
    form = FirstAccountForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        name, password = form.cleaned_data["username"], form.cleaned_data["password1"]
        try:
            user = actions.create_first_account(name, password, request_id(request))
        except actions.TooLate:
            return _dead_link(request)
        login(request, user, backend=settings.AUTHENTICATION_BACKENDS[-1])
        return HttpResponseRedirect(reverse("first-steps"))
    context = {**admin.site.each_context(request), "title": "Create the first account", "form": form}
    return TemplateResponse(request, "admin/sluicegate/first_account.html", context)


def _dead_link(request: HttpRequest) -> HttpResponse:
    sentence = (
        "It works once, for a day, and only while there is no account. If you have an account, sign in. If not, start "
        "`make up` again or run the command first_link. Both print another link."
    )
    return error_page(request, 403, "This link is not valid any more", sentence)


@never_cache
@require_http_methods(["GET", "POST"])
def first_steps(request: HttpRequest) -> HttpResponse:
    """Return the page with the steps to the first decision, or do the posted step."""
    check_may(request)
    if request.method != "POST":
        return _page(request)
    deeds = {"project": _create_project, "policy": _use_template, "token": _create_token}
    deed = deeds.get(request.POST.get("step", ""))
    if deed is None:
        raise PermissionDenied
    try:
        with change(actor=actor_of(request), reason="first steps") as tx:
            done = deed(request, tx)
    except actions.TooLate:
        messages.info(request, "This step was done meanwhile.")
    except ValidationError as exc:
        messages.error(request, " ".join(exc.messages))
    else:
        if done is not None:
            return _page(request, secret=done)
    return HttpResponseRedirect(reverse("first-steps"))


def check_may(request: HttpRequest) -> None:
    """Raise PermissionDenied unless the user runs this installation."""
    if not is_operator(request.user):
        raise PermissionDenied


def _create_project(request: HttpRequest, tx: OpenChange) -> None:
    actions.create_first_project(tx)


def _use_template(request: HttpRequest, tx: OpenChange) -> None:
    chosen = templates().get(request.POST.get("template", ""))
    if chosen is None:
        raise ValidationError(f"template: must be one of {', '.join(templates())}.")
    actions.use_template(tx, chosen, actions.create_first_project(tx))
    if chosen.needs_prices and not ModelPrice.objects.exists():
        url = reverse("admin:prices_modelprice_changelist")
        text = 'No model has a price, so requests under this policy are denied. <a href="{}">Set prices</a> first.'
        messages.warning(request, format_html(text, url))


def _create_token(request: HttpRequest, tx: OpenChange) -> str:
    """Return the secret of the first token."""
    _, secret = actions.create_first_token(tx, actions.create_first_project(tx))
    return secret


def _page(request: HttpRequest, secret: str = "") -> HttpResponse:
    """Return the page. Only the response to the creation of the token has the *secret*."""
    found = steps()
    current = next((step.name for step in found if not step.done), "")
    sample = _sample()
    context = {
        **admin.site.each_context(request),
        "title": "First steps",
        "steps": found,
        "current": current,
        "templates": templates().values(),
        "secret": secret,
        "snippets": token_snippets(secret or UNKNOWN_SECRET, sample),
        "may_send": bool(secret) and _is_here(),
        "sample": sample,
        "has_token": next(step.done for step in found if step.name == "token"),
    }
    return TemplateResponse(request, "admin/sluicegate/first_steps.html", context)


def _sample() -> Sample:
    """Return the request that is the example, which is that of the template in use or else of the first one."""
    slugs = set(Policy.objects.values_list("slug", flat=True))
    used = (template for template in templates().values() if template.policies[0].slug in slugs)
    return next(used, next(iter(templates().values()))).sample


@never_cache
@require_GET
def first_steps_state(request: HttpRequest) -> HttpResponse:
    """Return the state of each step as JSON, which the page reads every two seconds."""
    check_may(request)
    return JsonResponse({"steps": [step.as_json() for step in steps()]})


@never_cache
@require_POST
@sensitive_post_parameters()
def send_first_request(request: HttpRequest) -> HttpResponse:
    """Send the example to a proxy on this machine, and return a sentence on its answer as JSON."""
    check_may(request)
    secret = request.POST.get("secret", "")
    if not (_is_here() and is_well_formed(secret)):
        raise PermissionDenied
    sample = _sample()
    return JsonResponse({"sentence": _send(f"{proxy_url()}{sample.path}", sample, secret)})


def _is_here() -> bool:
    """Return whether the proxies of this installation are on this machine."""
    return urlsplit(proxy_url()).hostname in THIS_MACHINE


def _send(url: str, sample: Sample, secret: str) -> str:
    body = (sample.body or "{}").encode() if sample.method == "POST" else None
    sent = urllib.request.Request(url, data=body, method=sample.method, headers=_fields(secret, body))
    try:
        with urllib.request.urlopen(sent, timeout=SEND_TIMEOUT_SECONDS) as response:
            return f"The proxy answered with status {response.status}."
    except urllib.error.HTTPError as refused:
        with refused:
            return f"The proxy answered with status {refused.code}."
    except (OSError, http.client.HTTPException):
        return f"Nothing answers at {url}. Is the proxy running?"


def _fields(secret: str, body: bytes | None) -> dict[str, str]:
    kind = {"Content-Type": "application/json"} if body else {}
    return {"Authorization": f"Bearer {secret}", **kind}
