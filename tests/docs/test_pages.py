"""The pages below /docs/, as a browser gets them."""

import re
from html.parser import HTMLParser

import pytest

from controlplane.web.site import docs
from enforcement.model.limit_fields import FIELDS
from tests.repository import ROOT

pytestmark = pytest.mark.django_db

PICTURES = {
    "index": {"/static/controlplane/architecture.svg", "/static/controlplane/admin.png"},
    "decision-ids": {"/static/controlplane/admin-explain.png"},
    "operating": {f"/static/controlplane/admin-{name}.png" for name in ("review", "revisions", "statement", "token")},
}
SHOWN_FROM = [ROOT / "README.md", *sorted(docs.FOLDER.glob("*.md"))]


class Links(HTMLParser):
    """The ids of a page, what it links to and what it fetches."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.styles = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        self.ids |= {said["id"]} if said.get("id") else set()
        self.links += [said["href"]] if tag == "a" and "href" in said else []
        self.fetched += [said[name] for name in ("src", "href") if said.get(name) and tag != "a"]
        self.styles += "style" in said or tag in ("style", "script")


@pytest.mark.parametrize("slug", docs.SLUGS)
def test_a_page_is_served_to_everybody(client, slug):
    """Whoever reads how to make a first account has none."""
    answer = client.get(docs.page_url(slug))

    assert answer.status_code == 200
    assert f"<title>{docs.load(slug).title} – Sluicegate</title>" in answer.text


@pytest.mark.parametrize("slug", docs.SLUGS)
def test_a_page_needs_nothing_from_elsewhere(client, slug):
    """Its style is a file of this server; neither script nor inline style, which the policy forbids."""
    answer = client.get(docs.page_url(slug))
    page = Links(answer.text)

    assert "style-src 'self'" in answer["Content-Security-Policy"]
    assert page.styles == 0
    assert {re.sub(r"\.[0-9a-f]{12}\.", ".", name) for name in page.fetched} == {
        "/static/controlplane/docs.css",
        "/static/controlplane/favicon.svg",
    } | PICTURES.get(slug, set())


def test_every_link_leads_somewhere(admin_client):
    """Pages name each other as files, and link to each other as pages; sections are there."""
    pages = {docs.page_url(slug): Links(admin_client.get(docs.page_url(slug)).text) for slug in docs.SLUGS}
    linked = {(here, link) for here, page in pages.items() for link in page.links}

    for here, link in linked:
        if link.startswith("https://"):
            continue  # the tests ask nobody else
        address, _, section = link.partition("#")
        address = address or here
        if address not in pages:
            answer = admin_client.get(address)
            assert answer.status_code == 200, f"{here}: {link}"
            pages[address] = Links(answer.text)
        assert not section or section in pages[address].ids, f"{here}: {link}"


@pytest.mark.parametrize("path", SHOWN_FROM, ids=lambda path: path.stem)
def test_pictures_are_small_files_of_this_repository(path):
    """A relative path lets a forge show a picture. Each picture has a text for people who cannot see it."""
    for text, name in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", path.read_text()):
        picture = (path.parent / name).resolve()
        assert picture.is_relative_to(ROOT)
        assert picture.stat().st_size < 200_000
        assert len(text) > 20


def test_a_page_that_is_none_is_not_found(client):
    """Only the pages that there are: a name never becomes a path."""
    assert client.get("/docs/urls/").status_code == 404
    assert client.get("/docs/../manage/").status_code == 404


def test_every_file_is_a_page():
    """A page that nobody can reach would not be read."""
    assert {path.stem for path in docs.FOLDER.glob("*.md")} == set(docs.SLUGS)


def test_pages_are_read_only(client):
    """They take no form."""
    assert client.post("/docs/").status_code == 405


def test_what_tells_the_tests_how_to_run_a_block_is_not_shown(client):
    """Comments of a file are for those who edit it."""
    assert "background:" not in client.get("/docs/embedding/").text


def test_the_present_page_is_marked(client):
    """A screen reader says which of the list it is."""
    page = client.get("/docs/operating/").text

    assert re.findall(r'<a href="([^"]+)" aria-current="page">', page) == ["/docs/operating/"]
    assert 'rel="prev" href="/docs/kubernetes/"' in page


def test_the_reference_has_each_field_of_a_limit():
    """With its default and what it needs, from the table that the schemas have."""
    html = docs.load("how-it-works").html
    rows = html[html.index('id="fields-of-a-limit"') :].split("<tr>")[2:]
    assert [re.search(r"<code>(.*?)</code>", row)[1] for row in rows[: len(FIELDS)]] == [field.name for field in FIELDS]
    burst, mode, window = (
        next(row for row in rows if f"<td><code>{name}<" in row) for name in ("burst", "mode", "window_seconds")
    )
    assert "<code>algorithm</code>: token_bucket" in burst
    assert "<code>enforce</code>" in mode
    assert "no <code>calendar</code>" in window
