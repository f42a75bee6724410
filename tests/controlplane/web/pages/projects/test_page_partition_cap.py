"""A project's cap on the values of an attribute, in the admin: where it is set, and where it is said to be reached."""

import pytest
from django.urls import reverse

from controlplane.objects.projects.models import Project
from tests.enforcement.world import eventually

pytestmark = pytest.mark.django_db(transaction=True)

PROJECTS = "/admin/projects/project/"


def add(as_ann, cap):
    """Send the form that adds a project."""
    fields = {"slug": "a", "name": "A", "active": "on", "partition_cap": cap, "time_zone": "UTC"}
    return as_ann.post(f"{PROJECTS}add/", fields, follow=True)


@pytest.mark.parametrize("cap", [0, -1, 1_000_001, "many"])
def test_a_cap_that_no_enforcer_reads_is_refused(as_ann, store, cap):
    """At the field."""
    response = add(as_ann, cap)

    assert response.context["adminform"].form.errors["partition_cap"]
    assert not Project.objects.exists()


@pytest.mark.parametrize(("cap", "kept"), [("25", 25), ("", 10_000)])
def test_a_cap_is_saved(as_ann, store, cap, kept):
    """An empty field is the default."""
    add(as_ann, cap)

    assert Project.objects.get().partition_cap == kept


def test_the_page_of_a_project_says_that_it_is_full(full, as_ann):
    """With the cap, and what to do."""
    page = as_ann.get(f"{PROJECTS}{full.pk}/counters/").content.decode()

    assert "A counter for each of 5 values, of 5 that may have one" in page
    assert "About 7 more share one counter, which has 993 of 1,000 requests left" in page
    assert "raise the project's cap" in page


def first_page(as_ann):
    return as_ann.get(reverse("admin:index")).content.decode()


def test_the_first_page_says_which_project_is_full(full, as_ann):
    """As the enforcers tell it with their heartbeats, so that nobody has to look for it."""
    add(as_ann, 1)  # a new revision, which every enforcer acknowledges at once, with all else that it has to say

    assert eventually(lambda: "full has more values than its cap" in first_page(as_ann), 15)
    assert "the other values of full/user share one counter" in first_page(as_ann)


def test_the_first_page_says_nothing_of_projects_that_have_room(as_ann, store):
    """No news is no line."""
    add(as_ann, 1)

    assert "is full" not in first_page(as_ann)
