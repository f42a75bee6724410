"""The pages below /docs/. Each is a file of templates/docs, converted to HTML once in each process."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import markdown
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.templatetags.static import static
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.http import require_safe

from controlplane.web.restkit.problem_types import TYPES
from enforcement.model.limit_fields import FIELDS, REQUIRED, Field, Is

FOLDER: Path = settings.TEMPLATES_DIR / "docs"
INDEX = "index"
# In the order in which they are read.
SLUGS = (
    INDEX,
    "how-it-works",
    "embedding",
    "proxy",
    "fastapi",
    "starlette",
    "django",
    "flask",
    "envoy",
    "service",
    "proxies",
    "migrating",
    "testing",
    "observing",
    "decision-ids",
    "usage",
    "llm-budgets",
    "tokens-and-money",
    "provider-formats",
    "rest-by-example",
    "command-line",
    "connecting-redis",
    "when-redis-is-away",
    "deployment",
    "kubernetes",
    "operating",
    "service-levels",
    "capacity",
    "retention",
    "alerts",
    "access",
    "settings",
    "contributing",
)
EXTENSIONS = ("fenced_code", "tables", "toc", "sane_lists")
_KINDS = sorted(TYPES.items())
_LINK = re.compile(r'href="([a-z-]+)\.md(#[a-z0-9-]*)?"')
_IMAGE = re.compile(r'src="\.\./\.\./controlplane/static/([a-z/-]+\.(?:svg|png))"')
# Comments tell the tests how to run a block of code. Pages do not show them.
# Takes the place of a table in a file.
_LIMIT_FIELDS = "<!-- fields of a limit -->\n"
_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """
    A page of the documentation.

    ``title`` is the first heading, and ``sections`` has the id and name of each heading of the second level.
    """

    slug: str
    title: str
    html: SafeString
    sections: tuple[tuple[str, str], ...]

    @property
    def url(self) -> str:
        return page_url(self.slug)


@require_safe
def page(request: HttpRequest, slug: str = INDEX) -> HttpResponse:
    """Return the response with a page of the documentation, or raise Http404 if there is no such page."""
    if slug not in SLUGS:
        raise Http404("There is no such page of documentation.")
    at = SLUGS.index(slug)
    context = {
        "page": load(slug),
        "pages": [load(other) for other in SLUGS],
        "previous": load(SLUGS[at - 1]) if at else None,
        "next": load(SLUGS[at + 1]) if at + 1 < len(SLUGS) else None,
    }
    return render(request, "docs/page.html", context)


@require_safe
def problems(request: HttpRequest) -> HttpResponse:
    """Return the response with the list of all kinds of problems of REST."""
    rows = [
        f"| [`{code}`]({reverse('problem', args=[code])}) | {kind.status} | {kind.title} |" for code, kind in _KINDS
    ]
    head = "# Problems\n\nWhat REST answers if it refuses a request. `code` and `type` name the kind.\n\n"
    return _problem_page(request, "\n".join([f"{head}| code | status | what happened |\n| --- | --- | --- |", *rows]))


@require_safe
def problem(request: HttpRequest, code: str) -> HttpResponse:
    """Return the response with the page of one kind of problem, or raise Http404 if there is no such kind."""
    kind = TYPES.get(code)
    if kind is None:
        raise Http404("There is no such kind of problem.")
    text = f"# {kind.title}\n\n`{code}`, status {kind.status}.\n\n{kind.meaning}\n\n**What to do.** {kind.remedy}\n\n"
    return _problem_page(request, f"{text}[All problems]({reverse('problems')})")


def _problem_page(request: HttpRequest, text: str) -> HttpResponse:
    page = _converted("problems", text)
    return render(request, "docs/page.html", {"page": page, "pages": [load(other) for other in SLUGS]})


def page_url(slug: str) -> str:
    """Return the address of a page of the documentation."""
    return reverse("docs") if slug == INDEX else reverse("docs-page", args=[slug])


@cache
def load(slug: str) -> Page:
    """
    Return a page of the documentation, read from its file. Its text is part of this project, so its HTML is trusted.
    """
    text = (FOLDER / f"{slug}.md").read_text(encoding="utf-8")
    return _converted(slug, _COMMENT.sub("", text.replace(_LIMIT_FIELDS, _limit_fields())))


def _limit_fields() -> str:
    """Return the reference of the fields of a limit as a table."""
    rows = [
        f"| `{field.name}` | {_default(field)} | {'<br>'.join(map(_condition, field.only_if))} | {field.help} |"
        for field in FIELDS
    ]
    return "\n".join(["| field | default | only with | |", "| --- | --- | --- | --- |", *rows]) + "\n"


def _default(field: Field) -> str:
    if field.default is REQUIRED:
        return "required"
    return f"`{field.default}`" if isinstance(field.default, str) else ""


def _condition(condition: Is) -> str:
    if condition.values == (None,):
        return f"no `{condition.field}`"
    return f"`{condition.field}`: {', '.join(map(str, condition.values))}"


def _converted(slug: str, text: str) -> Page:
    reader = markdown.Markdown(extensions=EXTENSIONS)
    html = _IMAGE.sub(_to_static, _LINK.sub(_to_page, _scrollable(reader.convert(text))))
    (heading,) = reader.toc_tokens
    sections = tuple((child["id"], child["name"]) for child in heading["children"])
    return Page(slug, heading["name"], mark_safe(html), sections)


def _to_page(link: re.Match[str]) -> str:
    """Return the ``href`` of a link between files as a link between pages."""
    return f'href="{page_url(link[1])}{link[2] or ""}"'


def _to_static(image: re.Match[str]) -> str:
    """
    Return the ``src`` of a picture with its static address. The file has its relative path, so that a forge shows the
    picture too.
    """
    return f'src="{static(image[1])}"'


def _scrollable(html: str) -> str:
    """Return the HTML with tables and code that can be scrolled by keyboard on a small screen."""
    html = html.replace("<pre>", '<pre tabindex="0">')
    return html.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
