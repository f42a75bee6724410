"""The pages that people open during an outage of the store: what is known, and what is not."""

import pytest
from django.utils import timezone

from controlplane.releases.publishing import publisher
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.models import HEARTBEAT_LIFETIME, Instance
from enforcement import Limiter
from tests.controlplane.pages import text_of
from tests.enforcement.world import eventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def frozen(store, settings):
    """An instance runs and was seen; then the store answers nobody, for longer than a heartbeat is valid."""
    settings.PUBLISH_TIMEOUT_SECONDS = 0.1
    publisher.publish_all()
    with Limiter(store.url, instance="proxy-1"):
        assert eventually(lambda: heartbeats.collect(timezone.now()) == 1)
        Instance.objects.update(seen_at=timezone.now() - 2 * HEARTBEAT_LIFETIME)
        store.freeze()
        yield store
        store.thaw()


def test_the_first_page_says_that_the_fleet_is_unknown(as_ann, frozen):
    """It neither says that no process runs, nor shows an error of a library."""
    page = text_of(as_ann.get("/admin/"))

    assert "The store does not answer" in page
    assert "The store did not answer in time; 1 instance ran when it was last reached" in page
    assert "Last known instances" in page
    assert "proxy-1" in page
    assert "no live instance" not in page
    assert "Timeout" not in page


def test_instances_are_unknown_and_not_gone(as_ann, frozen):
    """In their list and on their page, until the store is back."""
    for address in ("/admin/fleet/instance/", "/admin/fleet/instance/proxy-1/change/"):
        page = text_of(as_ann.get(address))
        assert "The store did not answer in time." in page
        assert "unknown" in page
        assert "no heartbeat" not in page

    frozen.thaw()
    assert eventually(lambda: heartbeats.collect(timezone.now()) == 1)
    page = text_of(as_ann.get("/admin/fleet/instance/"))
    assert "unknown" not in page
    assert "no heartbeat" not in page


def test_a_revision_says_that_nobody_knows_who_runs_it(as_ann, frozen):
    """The instances that ran are named."""
    listed = text_of(as_ann.get("/admin/publishing/revision/"))
    assert "Nobody knows which instances have it" in listed
    assert "1 instance ran when it last answered." in listed
    page = text_of(as_ann.get("/admin/publishing/revision/1/change/"))
    assert "Nobody knows which instances have it. The store did not answer in time." in page
    assert "These instances ran when it last answered." in page
    assert "proxy-1" in page


def test_a_store_that_is_not_there_is_told_in_a_sentence(as_ann):
    """Nothing listens at its address."""
    page = text_of(as_ann.get("/admin/"))

    assert "Nothing answers at the address of the store" in page
    assert "Errno" not in page
