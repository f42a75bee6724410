"""The objects that the first steps create: an account, a project, policies of a template, and a token."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, OpenChange, change
from controlplane.core.transactions import take_turn
from controlplane.objects.people.records import Recorded
from controlplane.objects.policies.actions import replace_limits
from controlplane.objects.policies.models import Policy
from controlplane.objects.prices import catalogue
from controlplane.objects.prices.actions import apply_catalogue, lock_prices
from controlplane.objects.prices.differences import between
from controlplane.objects.prices.models import ModelPrice
from controlplane.objects.projects.actions import issue_token
from controlplane.objects.projects.models import Project, Token
from controlplane.web.kit.first_steps import first_project
from controlplane.web.overview.catalogue import Template
from enforcement.model.limits import Limit
from enforcement.model.metered import MONEY

# If two requests take the same step at once, the second one sees what the first one has done.
TURN = "first steps"
FIRST_PROJECT = "first"
FIRST_TOKEN = "first-token"
# As in the form of a token.
EXPIRY = timedelta(days=90)


class TooLate(Exception):
    """Another request has done this step."""


def create_first_account(name: str, password: str, request_id: str) -> User:
    """
    Save and return a superuser, together with a first project.

    Raises:
        TooLate: There is an account already.
    """
    with change(actor=Actor(name, "admin", request_id), reason="first account") as tx:
        # Two people may open the same link.
        take_turn(TURN)
        if User.objects.exists():
            raise TooLate
        user = User.objects.create_superuser(name, password=password)
        tx.created(Recorded(user))
        create_first_project(tx)
    return user


def create_first_project(tx: OpenChange) -> Project:
    """Return the oldest project, which is created if there is none."""
    take_turn(TURN)
    project = first_project()
    if project is None:
        project = Project(slug=FIRST_PROJECT, name="First project")
        project.full_clean()
        project.save()
        tx.created(project)
    return project


def use_template(tx: OpenChange, template: Template, project: Project) -> list[Policy]:
    """
    Save and return the policies of the template. Tokens of *project* that are created without a policy get the first.

    If they count money and no model has a price, the prices of the catalogue are saved, too.

    Raises:
        TooLate: There is a policy with limits already.
        ValidationError: A policy with one of the slugs exists.
    """
    take_turn(TURN)
    if Policy.objects.exclude(limits=None).exists():
        raise TooLate
    taken = Policy.objects.filter(slug__in=[it.slug for it in template.policies]).values_list("slug", flat=True)
    if taken:
        raise ValidationError(f"A policy {', '.join(sorted(taken))} exists already. Use it, or choose another one.")
    policies = []
    for it in template.policies:
        policy = Policy(slug=it.slug, name=it.name, description=it.description)
        policy.full_clean()
        policy.save()
        replace_limits(tx, policy, [_in_zone(limit, project) for limit in it.limits])
        tx.created(policy)
        policies.append(policy)
    before = project.as_record()
    project.token_policy = policies[0]
    if template.anonymous:
        project.anonymous_policy = policies[0]
    project.full_clean()
    project.save()
    tx.updated(project, before)
    if template.needs_prices:
        _take_prices(tx)
    return policies


def _in_zone(limit: Limit, project: Project) -> Limit:
    """Return a limit of a template, a budget of money in the time zone of the project, whose bills have that."""
    is_budget = limit.unit == MONEY and limit.calendar not in (None, "lifetime")
    return replace(limit, time_zone=project.time_zone) if is_budget else limit


def _take_prices(tx: OpenChange) -> None:
    """Save the prices of the catalogue, unless there are prices or it has none in the currency of this installation."""
    lock_prices()
    if ModelPrice.objects.exists() or settings.CURRENCY != catalogue.CURRENCY:
        return
    with suppress(catalogue.Unavailable):
        apply_catalogue(tx, between([], catalogue.read().prices))


def create_first_token(tx: OpenChange, project: Project) -> tuple[Token, str]:
    """
    Save a token of *project* with the policy of its new tokens, and return it with its secret.

    Raises:
        TooLate: There is a live token already.
    """
    take_turn(TURN)
    now = timezone.now()
    if Token.objects.live(now).exists():
        raise TooLate
    return issue_token(tx, project=project, name=FIRST_TOKEN, expires_at=(now + EXPIRY).replace(microsecond=0))
