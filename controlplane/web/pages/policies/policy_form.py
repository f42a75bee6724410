"""The form of a policy, with the rules for metered requests as fields of their own."""

from typing import Any

from django import forms
from django.contrib.admin.utils import unquote
from django.core.exceptions import ValidationError
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from controlplane.core.text import PRINTABLE, slug_error
from controlplane.objects.people.scope import is_operator
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import SLUG_RULE
from controlplane.web.kit.forms import NumbersField, ReasonDialog, RecordedForm
from enforcement.model.metered import (
    MAX_LOST_AFTER,
    MAX_OUTPUT_CAP,
    PARTS,
    USUAL_DISCONNECT,
    USUAL_LOST_AFTER,
    USUAL_OUTPUT_CAP,
    InvalidMetering,
    Metering,
)

ESTIMATES = {
    "typical": "Typical — by the length of the text",
    "bound": "Bound — the most that it can be, and deny what has no bound",
}
DISCONNECTS = {
    "": "The usual — read on with a bound, else cancel",
    "drain": "Read on, within bounds — the provider says what the whole answer cost",
    "free": "Cancel the call — the provider stops soon, and what nobody saw stays charged as estimated",
}
METERING_FIELDS = ("estimate", "default_cap", "part_tokens", "on_disconnect", "clamp_at_least", "lost_after")
METERED_REQUESTS = ("Metered requests", {"fields": list(METERING_FIELDS), "classes": ["collapse", "sg-metering"]})


def _choice(label: str, words: dict[str, str]) -> forms.ChoiceField:
    return forms.ChoiceField(label=label, choices=list(words.items()), widget=UnfoldAdminSelectWidget, required=False)


def _integer(label: str, help_text: str, least: int = 1, most: int = MAX_OUTPUT_CAP) -> forms.IntegerField:
    return forms.IntegerField(
        label=label,
        help_text=help_text,
        required=False,
        min_value=least,
        max_value=most,
        widget=UnfoldAdminIntegerFieldWidget,
    )


class CopyDialog(ReasonDialog):
    """The dialog that asks for the slug and the name of a copy."""

    slug = forms.CharField(max_length=63, validators=[SLUG_RULE], widget=UnfoldAdminTextInputWidget)
    name = forms.CharField(max_length=200, validators=[PRINTABLE], widget=UnfoldAdminTextInputWidget)
    field_order = ["slug", "name", "reason"]

    def clean_slug(self) -> str:
        slug: str = self.cleaned_data["slug"]
        policy = Policy.objects.select_related("project").filter(pk=unquote(self.object_id or "")).first()
        members = not is_operator(self.request.user)
        if members and policy and policy.project and (error := slug_error(slug, policy.project.slug)):
            raise ValidationError(f"{error}, because only operators choose other names.")
        if Policy.objects.filter(slug=slug).exists():
            raise ValidationError(f"A policy {slug} exists already.")
        return slug


class PolicyForm(RecordedForm):
    # Whether the user is no operator, so that a slug must not tell of the policies of other projects.
    is_for_members = False

    estimate = _choice("Input is estimated as", ESTIMATES)
    default_cap = _integer(
        "Default cap",
        "Output tokens of a request that names no cap. It is written into the request. If empty, the default_cap of "
        f"the model's price, else {USUAL_OUTPUT_CAP:,}.",
    )
    part_tokens = NumbersField(
        required=False,
        label="Tokens per image, audio or file",
        help_text=f"Of parts that are not text, one kind on each line, such as image = 1000. Kinds are "
        f"{', '.join(PARTS)}.",
    )
    on_disconnect = _choice("If the client leaves", DISCONNECTS)
    clamp_at_least = _integer(
        "Lowest cap when the budget is short",
        "Lower the cap of a request to what its limits have left, but not below this number. If empty, deny it.",
    )
    lost_after = _integer(
        "Settle lost ones after",
        "Seconds after which a reservation that its process has lost is settled as its estimate. 0: as soon as it is "
        f"found. {MAX_LOST_AFTER}: only by hand. If empty: {USUAL_LOST_AFTER}.",
        0,
        MAX_LOST_AFTER,
    )

    class Meta:
        model = Policy
        exclude = ["metering"]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        rules = self.instance.rules
        for name in METERING_FIELDS:
            value = getattr(rules, name)
            self.fields[name].initial = dict(value) if name == "part_tokens" else value
        if rules.on_disconnect == USUAL_DISCONNECT[rules.estimate]:
            self.fields["on_disconnect"].initial = ""  # so that it goes with the estimate if that is changed

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        self._check_slug(cleaned)
        rules = {name: cleaned[name] for name in METERING_FIELDS if cleaned.get(name) not in (None, "", {})}
        try:
            self.instance.metering = Metering.from_json(rules).to_json()
        except InvalidMetering as exc:
            self.add_error(exc.field, exc.reason)
        return cleaned

    def _check_slug(self, cleaned: dict[str, Any]) -> None:
        project = cleaned.get("project") or self.instance.project
        slug = cleaned.get("slug") if "slug" in self.changed_data else None
        if self.is_for_members and slug and project and (error := slug_error(slug, project.slug)):
            self.add_error("slug", f"{error}, because only operators choose other names.")
