import csv
import io
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from controlplane.core.files import cell
from controlplane.core.text import escaped, unprintable
from controlplane.traffic.reports import daily_reports, tasks, usage_render, usage_report
from controlplane.traffic.usage.models import DailyReport
from tests.controlplane.traffic.usage.conftest import NOON
from tests.factories import InstanceFactory, LimitFactory, PolicyFactory, ProjectFactory, TokenFactory, UsageRowFactory

pytestmark = pytest.mark.django_db

DAY = date(2026, 11, 23)
MIDNIGHT = datetime(2026, 11, 23, tzinfo=UTC)


def of_day(**fields) -> None:
    UsageRowFactory(**{"period": "day", "at": MIDNIGHT, "allowed": 0, "cost": 0, **fields})


@pytest.fixture
def busy_day() -> None:
    """Two projects, three tokens, one limit that denied; the names are those that people gave."""
    chat, search = ProjectFactory(slug="chat"), ProjectFactory(slug="search")
    limit = LimitFactory(policy=PolicyFactory(slug="free"), name="minute")
    for project, name, allowed, denied in ((chat, "web", 1200, 300), (chat, "app", 50, 0), (search, "ci", 7, 900)):
        token = TokenFactory(project=project, name=name)
        ids = {"project_id": project.pk, "token_id": token.pk}
        of_day(**ids, allowed=allowed, denied=denied, cost=allowed)
        of_day(**ids, policy_id=limit.policy_id, limit_name="minute", allowed=allowed, denied=denied, cost=allowed)


def test_every_decision_is_counted_once(busy_day):
    """What a token's limits counted is not added to what the token did."""
    built = usage_report.build(DAY, NOON)

    assert (built.totals.allowed, built.totals.denied) == (1257, 1200)
    assert [(line.project, line.allowed, line.denied) for line in built.projects] == [
        ("chat", 1250, 300),
        ("search", 7, 900),
    ]


def test_who_was_denied_most_comes_first(busy_day):
    """Tokens and limits without a denial are not in that list."""
    built = usage_report.build(DAY, NOON)

    assert [(line.token, line.denied) for line in built.top_denied_tokens] == [("ci", 900), ("web", 300)]
    assert [(line.limit, line.denied) for line in built.top_denied_limits] == [("free/minute", 1200)]


def test_what_was_deleted_is_shown_by_its_id():
    """History outlives the objects."""
    of_day(project_id="proj_gone", token_id="tok_gone", policy_id="pol_gone", limit_name="minute", denied=1)

    line = usage_report.build(DAY, NOON).limits[0]

    assert (line.project, line.token, line.limit) == ("proj_gone", "tok_gone", "pol_gone/minute")


def test_requests_without_a_token_are_a_line_of_their_project_and_no_token():
    """They have no id, and are not counted among the tokens."""
    of_day(project_id=ProjectFactory(slug="web").pk, token_id="", allowed=3, denied=2, cost=3)

    built = usage_report.build(DAY, NOON)

    assert [(line.project, line.token, line.denied) for line in built.tokens] == [("web", "(no token)", 2)]
    assert (built.summary["tokens"], built.totals.allowed) == (0, 3)
    assert "web / (no token)" in usage_render.as_text(built)


def test_other_days_and_periods_are_not_counted():
    """A day is its own sum, from midnight to midnight."""
    of_day(at=MIDNIGHT + timedelta(days=1), allowed=1)
    of_day(at=MIDNIGHT, period="hour", allowed=1)

    assert usage_report.build(DAY, NOON).totals.allowed == 0


@pytest.mark.parametrize(("day", "complete"), [(DAY, True), (NOON.date(), False)])
def test_a_report_says_whether_the_day_is_over(day, complete):
    """Nobody takes half a day for a quiet one."""
    assert usage_report.build(day, NOON).complete is complete
    assert ("so far" in usage_render.as_text(usage_report.build(day, NOON))) is not complete


def test_csv_has_a_line_a_token_and_limit(busy_day):
    """A spreadsheet gets everything: totals of tokens first, then each limit."""
    rows = list(csv.DictReader(io.StringIO(usage_render.as_csv(usage_report.build(DAY, NOON)))))

    assert [(row["token"], row["limit"], row["denied"]) for row in rows] == [
        ("web", "", "300"),
        ("ci", "", "900"),
        ("app", "", "0"),
        ("web", "free/minute", "300"),
        ("app", "free/minute", "0"),
        ("ci", "free/minute", "900"),
    ]
    assert {row["day"] for row in rows} == {"2026-11-23"}


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1+1", "\u3000=1+1", "＝1+1", "＋1", "－1", "＠A1"])
def test_a_name_is_no_formula_in_a_spreadsheet(name):
    """A tenant's name for a token does not run in the operator's spreadsheet, after a space or in full width either."""
    of_day(token_id=TokenFactory(name=name).pk, allowed=1)

    rows = list(csv.DictReader(io.StringIO(usage_render.as_csv(usage_report.build(DAY, NOON)))))

    assert rows[0]["token"] == f"'{name}"


OLD_NAMES = {
    "\n=cmd|calc": r"\n=cmd|calc",
    "\t=1+1": r"\t=1+1",
    "\x1b]0;pwned\x07\x1b[31mRED": r"\x1b]0;pwned\x07\x1b[31mRED",
    "\u202egnp.exe": r"\u202egnp.exe",
}


@pytest.mark.parametrize(("name", "shown"), OLD_NAMES.items())
@pytest.mark.parametrize("form", ["text", "csv", "html"])
def test_an_old_name_controls_no_terminal(name, shown, form, capsys):
    """Names from before the rule are shown with escapes, one row on one line, in every format."""
    token = TokenFactory()
    type(token).objects.update(name=name)
    of_day(token_id=token.pk, denied=1)

    call_command("daily_report", "--day", "2026-11-23", "--format", form)

    printed = capsys.readouterr().out
    assert shown in printed
    assert name not in printed
    assert {unprintable(line) for line in printed.split("\n")} == {""}


@pytest.mark.parametrize("value", ["\n=cmd|calc", "\r\n+1", "\x1b=1+1", "\u200b＝1", "\n \t@A1"])
def test_a_cell_is_judged_by_what_a_spreadsheet_sees(value):
    """Line breaks, controls and invisible characters before a formula are skipped."""
    assert cell(value) == f"'{escaped(value)}"


def test_html_escapes_names():
    """A tenant's name for a token does not run in the operator's browser."""
    of_day(token_id=TokenFactory(name="<script>alert(1)</script>").pk, denied=1)

    page = usage_render.as_html(usage_report.build(DAY, NOON))

    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page


class Outline(HTMLParser):
    """What a screen reader steps through, and what a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]


def test_html_is_a_whole_page_that_fetches_nothing(busy_day):
    """It can be sent by mail and opened anywhere."""
    page = usage_render.as_html(usage_report.build(DAY, NOON))
    outline = Outline(page)

    assert outline.fetched == []
    assert (outline.tags.count("h1"), outline.tags.count("h2"), outline.tags.count("table")) == (1, 4, 4)
    assert "1,257" in page


def test_html_of_many_tokens_shows_the_busiest():
    """The page stays readable; the file has them all."""
    for number in range(201):
        of_day(token_id=f"tok_{number}", allowed=number)

    built = usage_report.build(DAY, NOON)

    assert "The 200 tokens with most decisions. 1 more are in the CSV file." in usage_render.as_html(built)
    assert len(usage_render.as_csv(built).splitlines()) == 202


def test_text_fits_a_terminal(busy_day):
    """The same sums, read at a glance."""
    assert usage_render.as_text(usage_report.build(DAY, NOON)) == (
        "Usage of 2026-11-23 (UTC)\n"
        "1,257 allowed, 1,200 denied, 0 would be denied by shadow limits\n"
        "\n"
        "Projects       allowed        denied    would deny\n"
        "chat             1,250           300             0\n"
        "search               7           900             0\n"
        "\n"
        "Most denied tokens       allowed        denied    would deny\n"
        "search / ci                    7           900             0\n"
        "chat / web                 1,200           300             0\n"
        "\n"
        "Most denied limits       allowed        denied    would deny\n"
        "free/minute                1,257         1,200             0\n"
    )


def test_an_outage_is_reported():
    """How many decisions were made without the store, and in what time at most."""
    alone = {"2026-11-23": {"decisions": 812, "ms": 14_000}}
    InstanceFactory.build(decisions={"allowed": 0, "denied": 0, "fallback": 812, "fallback_by_day": alone}).save()

    built = usage_report.build(DAY, NOON)

    assert "812 decided without the store, during at most 14 s" in usage_render.as_text(built)
    assert "for at most 14 seconds" in usage_render.as_html(built)
    assert built.summary["without_store"] == {"decisions": 812, "at_most_ms": 14_000}


def test_a_report_is_kept(busy_day):
    """Both files and the sums, for the admin and the API."""
    kept = daily_reports.write(DAY, NOON)

    assert (kept.day, kept.created_at, kept.summary["denied"]) == (DAY, NOON, 1200)
    assert kept.csv.startswith("day,project,token,")
    assert kept.html.startswith("<!DOCTYPE html>")


def test_a_second_report_of_a_day_replaces_the_first(busy_day):
    """There is one a day, with the last sums."""
    daily_reports.write(DAY, NOON)
    of_day(token_id="tok_late", allowed=1)

    daily_reports.write(DAY, NOON)

    assert DailyReport.objects.get().summary["allowed"] == 1258


def test_a_quiet_yesterday_has_its_report():
    """Silence is news; the days before the first request are not."""
    assert daily_reports.write_missing(NOON) == [DAY]
    assert "No usage was reported" in DailyReport.objects.get().html


def test_missed_reports_are_caught_up():
    """A worker that was away for days writes what it missed, oldest first."""
    for back in (1, 3, 9):
        of_day(at=datetime(2026, 11, 24, tzinfo=UTC) - timedelta(days=back), allowed=1)

    assert daily_reports.write_missing(NOON) == [date(2026, 11, 21), date(2026, 11, 23)]


def test_late_usage_is_reported_again():
    """A proxy that was cut off delivers yesterday's usage today."""
    daily_reports.write_missing(NOON)
    assert daily_reports.write_missing(NOON) == []
    of_day(allowed=5)

    assert daily_reports.write_missing(NOON) == [DAY]
    assert DailyReport.objects.get(day=DAY).summary["allowed"] == 5


def test_the_task_may_run_twice():
    """The second run finds nothing to do."""
    yesterday = (timezone.now() - timedelta(days=1)).date().isoformat()

    assert tasks.daily_reports() == [yesterday]
    assert tasks.daily_reports() == []


def test_the_command_prints_and_keeps_a_day(busy_day, capsys):
    """What a person sees and what is kept are of the same moment."""
    call_command("daily_report", "--day", "2026-11-23")

    assert "chat             1,250           300" in capsys.readouterr().out
    assert DailyReport.objects.get().day == DAY


def test_the_command_reports_today_so_far(capsys):
    """It is printed and not kept: the day is not over."""
    call_command("daily_report", "--day", timezone.now().date().isoformat())

    assert "so far" in capsys.readouterr().out
    assert not DailyReport.objects.exists()


@pytest.mark.parametrize(
    ("form", "begin"), [("csv", "day,project,"), ("html", "<!DOCTYPE html>"), ("text", "Usage of ")]
)
def test_the_command_writes_a_file(tmp_path, form, begin):
    """Each format can be handed on."""
    call_command("daily_report", "--day", "2026-11-23", "--format", form, "--output", str(tmp_path / "report"))

    assert (tmp_path / "report").read_text().startswith(begin)


@pytest.mark.parametrize(
    ("day", "said"),
    [
        ("yesterday", "--day: must be a day as YYYY-MM-DD, got 'yesterday'."),
        ("2026-02-30", "--day: must be a day as YYYY-MM-DD, got '2026-02-30'."),
        ("9999-12-31", "--day: must not be in the future, got 9999-12-31."),
    ],
)
def test_a_day_that_is_none_is_refused(day, said):
    """The message says what is wrong and what would be right."""
    with pytest.raises(CommandError) as refused:
        call_command("daily_report", "--day", day)

    assert str(refused.value) == said


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    """No traceback for a wrong path."""
    with pytest.raises(CommandError, match="the report could not be written"):
        call_command("daily_report", "--day", "2026-11-23", "--output", str(tmp_path / "missing" / "report"))
