"""The address of the API itself, which `make up` prints."""

from controlplane.web.site.api_urls import RESOURCES


def test_the_address_of_the_api_lists_its_resources(client):
    """Nobody has to know an address before the first request, and no key is needed to find the documentation."""
    document = client.get("/api/v1/").json()

    assert document["documentation"] == "http://testserver/api/v1/docs/"
    assert document["resources"]["projects"] == "http://testserver/api/v1/projects"
    assert list(document["resources"]) == sorted(RESOURCES)


def test_each_listed_address_is_there(api):
    """A reply other than 404 for each of them."""
    listed = api("GET", "/api/v1/").json()["resources"]

    assert {name for name in listed if api("GET", name).status_code == 404} == set()


def test_only_reading_the_list_is_possible(client):
    """As everywhere, another method is a problem."""
    assert client.post("/api/v1/").status_code == 405
