"""The pages on which users add an authenticator, and give its codes."""

from collections.abc import Callable
from typing import Any

import django_otp
import segno
from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.signals import user_login_failed
from django.contrib.auth.views import RedirectURLMixin
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.safestring import mark_safe
from django_otp.middleware import is_verified
from django_otp.plugins.otp_totp.models import TOTPDevice
from unfold.widgets import UnfoldAdminTextInputWidget

from controlplane.changes.change.transaction import change
from controlplane.objects.people import second_factor
from controlplane.objects.people.records import Recorded
from controlplane.web.kit.site import actor_of, user_of
from controlplane.web.login.second_factor_gate import code_url

# The key of an authenticator that is not saved yet.
SESSION_KEY = "second_factor_key"
WRONG = "This code is not right. Codes change every 30 seconds, and each works once. Check the clock of the device."


class CodeForm(forms.Form):
    code = forms.CharField(
        max_length=40,
        label="Code",
        widget=UnfoldAdminTextInputWidget(
            attrs={"autocomplete": "one-time-code", "autocapitalize": "off", "spellcheck": "false", "autofocus": True}
        ),
    )


def second_factor_view(request: HttpRequest) -> HttpResponse:
    """Return the page of the own second factor, which adds an authenticator, or changes what there is."""
    if second_factor.device_of(user_of(request)) is None:
        return _enrolment(request)
    if not is_verified(request.user):
        return HttpResponseRedirect(code_url(request.path))
    return _own(request)


def _enrolment(request: HttpRequest) -> HttpResponse:
    key = request.session.setdefault(SESSION_KEY, second_factor.new_key())
    form = CodeForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        if codes := _recorded(request, lambda: _enrolled(request, key, form.cleaned_data["code"])):
            return _page(request, codes=codes)
        form.add_error("code", WRONG)
    url = second_factor.address_of(user_of(request), key)
    picture = segno.make_qr(url, error="m").svg_inline(scale=4, border=4, light="#fff", omitsize=False)
    return _page(request, form=form, picture=mark_safe(picture), key=second_factor.readable(key))


def _enrolled(request: HttpRequest, key: str, code: str) -> list[str]:
    """Save the authenticator if its code is right, and return recovery codes, or an empty list."""
    device = second_factor.enrol(user_of(request), key, code)
    if device is None:
        return []
    del request.session[SESSION_KEY]
    _log_in(request, device)
    return second_factor.new_recovery_codes(user_of(request))


def _own(request: HttpRequest) -> HttpResponse:
    """Return the page of the second factor that there is. Each change of it asks for a fresh code."""
    form = CodeForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        if not _is_right(request, form):
            return _page(request, form=form, left=second_factor.recovery_codes_left(user_of(request)))
        if "remove" in request.POST:
            _recorded(request, lambda: second_factor.remove(user_of(request)))
            messages.success(request, "Your second factor is removed.")
            return HttpResponseRedirect(reverse("second-factor"))
        codes = _recorded(request, lambda: second_factor.new_recovery_codes(user_of(request)), "recovery_codes")
        return _page(request, codes=codes)
    return _page(request, form=form, left=second_factor.recovery_codes_left(user_of(request)))


def _recorded[T](request: HttpRequest, act: Callable[[], T], what: str = "second_factor") -> T:
    """Return what *act* returns, with an audit entry if that is true."""
    record = Recorded(user_of(request))
    before = record.as_record()
    with change(actor=actor_of(request)) as tx:
        if done := act():
            tx.record(f"user.{what}", record, before=before, after=record.as_record())
    return done


def _page(request: HttpRequest, **context: Any) -> HttpResponse:
    shared = {**admin.site.each_context(request), "title": "Second factor", "required": settings.REQUIRE_SECOND_FACTOR}
    response = TemplateResponse(request, "admin/sluicegate/second_factor.html", {**shared, **context})
    response["Cache-Control"] = "no-store"  # it has the key or the recovery codes
    return response


class Following(RedirectURLMixin):
    """Where a log-in leads to, only to an address of this server."""

    def __init__(self, request: HttpRequest) -> None:
        self.request = request

    def get_default_redirect_url(self) -> str:
        return reverse("admin:index")


def code_view(request: HttpRequest) -> HttpResponse:
    """Return the page that asks for a code after the password, or lead to where the user wanted to go."""
    following = Following(request).get_success_url()
    if is_verified(request.user) or second_factor.device_of(user_of(request)) is None:
        return HttpResponseRedirect(following)
    form = CodeForm(request.POST or None)
    if request.method == "POST" and form.is_valid() and _is_right(request, form):
        return HttpResponseRedirect(following)
    context = {**admin.site.each_context(request), "title": "Second factor", "form": form, "next": following}
    return TemplateResponse(request, "admin/sluicegate/second_factor_code.html", context)


def _is_right(request: HttpRequest, form: CodeForm) -> bool:
    """Return whether the code of a form is right, and then let the session in. Else the form says what is wrong."""
    if wait := second_factor.wait_seconds(user_of(request)):
        form.add_error("code", f"Wait {wait} second{'' if wait == 1 else 's'} after a wrong code, then try again.")
        return False
    device = second_factor.verify(user_of(request), form.cleaned_data["code"])
    if device is None:
        # So it is among the failed log-ins, and locks the address out after some.
        credentials = {"username": request.user.get_username()}
        user_login_failed.send(sender=__name__, credentials=credentials, request=request)
        form.add_error("code", WRONG)
        return False
    _log_in(request, device)
    return True


def _log_in(request: HttpRequest, device: TOTPDevice) -> None:
    """Let the session in, with a new key, so that a copy of the former one is worth nothing."""
    request.session.cycle_key()
    django_otp.login(request, device)


urlpatterns = [
    path("", admin.site.admin_view(second_factor_view), name="second-factor"),
    path("code/", admin.site.admin_view(code_view), name="second-factor-code"),
]
