"""The overrides of tokens and the global policy in policy files."""

import json

import pytest
from django.utils import timezone

from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Policy
from tests.enforcement.cli.remote.conftest import FILE
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UserFactory,
)

SHARED = """\
apiVersion: sluicegate/v1
shared: true
global: everybody
policies:
  - slug: everybody
    limits:
      - name: per-second
        algorithm: fixed_window
        quota: 1000
        window_seconds: 1
"""


@pytest.fixture
def tokens(cli, chat_file):
    """Two tokens of a project that the file describes."""
    assert cli("apply", "chat.yaml", "--yes").status == 0
    project = ProjectFactory._meta.model.objects.get(slug="chat")
    return [TokenFactory(project=project, name=name) for name in ("arm", "leg")]


def with_tokens(tokens, *quotas):
    rows = [
        f"  - token: {token.pk}\n    limit: chat--free/per-minute\n    quota: {quota}\n    reason: trial\n"
        for token, quota in zip(sorted(tokens, key=lambda token: token.pk), quotas, strict=False)
    ]
    return FILE.replace("token_overrides: []\n", "token_overrides:\n" + "".join(rows))


def test_overrides_of_tokens_are_applied_and_exported(cli, chat_file, tokens):
    """They are marked, and the export is the file. One that has ended is not exported."""
    chat_file.write_text(with_tokens(tokens, 700, 800))
    assert cli("apply", "chat.yaml", "--yes").status == 0
    found = dict(Override.objects.exclude(token=None).values_list("token", "quota"))

    assert found == {tokens[0].pk: 700, tokens[1].pk: 800}
    assert {*Override.objects.values_list("managed_by", flat=True)} == {"chat.yaml"}
    assert cli("export", "chat").out.partition("\n")[2] == chat_file.read_text()
    assert cli("diff", "chat.yaml").status == 0

    Override.objects.filter(quota=800).update(ends_at=timezone.now())
    chat_file.write_text(with_tokens(tokens, 700))
    assert cli("export", "chat").out.partition("\n")[2] == chat_file.read_text()
    assert "token_overrides" not in cli("export", "chat", "--no-token-overrides").out


def test_an_override_for_no_token_names_its_line(cli, chat_file, tokens):
    """Also for a token of another project. Nothing is changed."""
    for token in (TokenFactory(), TokenFactory.build()):
        chat_file.write_text(with_tokens([token], 700).replace("quota: 60\n", "quota: 30\n"))
        line = chat_file.read_text().splitlines().index(f"  - token: {token.pk}") + 1

        found = cli("apply", "chat.yaml", "--yes")

        assert found.status == 2
        where = f"chat.yaml:{line}: token_overrides[0].token"
        assert found.err == f"sluicegate apply: {where}: There is no token {token.pk} in the project.\n"
    assert Policy.objects.get(slug="chat--free").limits.get(name="per-minute").quota == 60


def test_the_shared_file_chooses_the_global_policy(cli, tmp_path):
    """Before a policy that was chosen is deleted, and null chooses none."""
    PolicyFactory(slug="former", managed_by="shared.yaml", is_global=True)
    path = tmp_path / "shared.yaml"
    path.write_text(SHARED)

    done = cli("apply", "shared.yaml", "--yes", "--prune")

    assert (done.status, [*Policy.objects.values_list("slug", "is_global")]) == (0, [("everybody", True)])
    assert cli("export", "--shared").out.partition("\n")[2] == SHARED
    path.write_text(SHARED.replace("global: everybody\n", ""))
    assert "The global policy is everybody, of which the file says nothing." in cli("diff", "shared.yaml").err
    path.write_text(SHARED.replace("everybody\npolicies", "null\npolicies"))
    assert cli("apply", "shared.yaml", "--yes").status == 0
    assert not Policy.objects.filter(is_global=True).exists()
    path.write_text(SHARED.replace("everybody\npolicies", "nobody\npolicies"))
    assert "shared.yaml:3: global: Must be a policy that all projects share." in cli("plan", "shared.yaml").err


def test_a_key_of_one_project_may_not_choose_the_global_policy(cli, tmp_path, monkeypatch):
    """The shared file is for keys of all projects, as REST has it."""
    PolicyFactory(slug="everybody")
    limited = ManagementKeyFactory(projects=[ProjectFactory()])
    (tmp_path / "shared.yaml").write_text(SHARED)
    monkeypatch.setenv("SLUICEGATE_KEY", limited.secret)

    found = cli("apply", "shared.yaml", "--yes")

    assert found.status == 2
    assert not Policy.objects.filter(is_global=True).exists()


@pytest.mark.django_db
def test_the_admin_says_that_an_override_is_managed(client):
    """Its form is read-only until somebody chooses to edit it anyway."""
    override = OverrideFactory(managed_by="limits/chat.yaml")
    client.force_login(UserFactory(operator=True))
    page = f"/admin/policies/override/{override.pk}/change/"

    kept, anyway = client.get(page).text, client.get(f"{page}?edit=anyway").text

    assert "limits/chat.yaml" in kept
    assert 'name="quota"' not in kept
    assert 'name="quota"' in anyway
    assert "from files" in client.get("/admin/policies/override/").text


def limit_of(policy, **fields):
    """An override of a limit that all projects share, in the file."""
    more = "".join(f"    {name}: {value}\n" for name, value in fields.items())
    return FILE.replace(
        "token_overrides:", f"  - limit: {policy}/per-minute\n{more}    reason: trial\ntoken_overrides:"
    )


@pytest.mark.parametrize(
    ("policy", "fields", "field", "says"),
    [
        ("shared", {"quota": 7}, "limit", "Must apply to chat. Neither its policy nor a policy of its"),
        ("none", {"quota": 7}, "limit", "Must be a limit of a policy. There is no policy none."),
        ("other", {"quota": 7}, "limit", "Must be a limit of the policy other, which has no per-minute."),
        ("empty", {"quota": 7}, "limit", "Must be a limit of the policy empty, which has no per-minute."),
        ("everybody", {"quota": 7, "burst": 9}, "burst", "Only a token_bucket has a burst."),
    ],
)
def test_a_plan_names_an_override_that_the_control_plane_would_refuse(cli, chat_file, policy, fields, field, says):
    """Before anything is changed. Without it, applying stopped in the middle after a plan without a word."""
    for slug in ("shared", "everybody"):
        LimitFactory(policy=PolicyFactory(slug=slug, is_global=slug == "everybody"), name="per-minute", quota=5)
    PolicyFactory(slug="other", project=ProjectFactory(slug="sales"))
    PolicyFactory(slug="empty")
    chat_file.write_text(limit_of(policy, **fields))
    before = Override.objects.count(), Policy.objects.count()

    for words in (["plan"], ["apply", "--yes"]):
        found = cli(words[0], "chat.yaml", *words[1:])
        assert (found.status, f"overrides[1].{field}: {says}" in found.err) == (2, True), found.err
    assert (Override.objects.count(), Policy.objects.count()) == before


@pytest.mark.parametrize("how", ["project", "anonymous", "token", "global"])
def test_a_plan_knows_by_what_a_limit_will_apply(cli, chat_file, how):
    """As the control plane does, after the other steps of the plan, and applying it goes through."""
    policy = PolicyFactory(slug="shared", is_global=how == "global")
    LimitFactory(policy=policy, name="per-minute", quota=5)
    text = limit_of("shared", quota=7)
    if how == "project":
        text = text.replace("  policy: chat--free\n", "  policy: shared\n", 1)
        text = text[: text.index("  - limit: chat--free")] + text[text.index("  - limit: shared") :]
    if how == "anonymous":
        text = text.replace("  policy: chat--free\n", "  policy: chat--free\n  anonymous_policy: shared\n", 1)
    if how == "token":
        assert cli("apply", "chat.yaml", "--yes").status == 0
        TokenFactory(project=ProjectFactory._meta.model.objects.get(slug="chat"), policy=policy)
    chat_file.write_text(text)

    assert cli("plan", "chat.yaml").status == 0
    assert cli("apply", "chat.yaml", "--yes").status == 0
    assert Override.objects.filter(limit__policy=policy, project__slug="chat", quota=7).exists()


def test_an_override_of_a_token_must_apply_to_it(cli, chat_file, tokens):
    """The policy of another token does not count."""
    policy = LimitFactory(policy=PolicyFactory(slug="shared"), name="per-minute").policy
    tokens[0].policy = policy
    tokens[0].save()
    rows = "".join(
        f"  - token: {token.pk}\n    limit: shared/per-minute\n    quota: 7\n    reason: x\n" for token in tokens
    )
    chat_file.write_text(FILE.replace("token_overrides: []\n", "token_overrides:\n" + rows))
    found = cli("plan", "chat.yaml")

    assert found.status == 2
    assert "token_overrides[1].limit: Must apply to leg (" in found.err
    assert "token_overrides[0]" not in found.err


def test_an_override_of_one_team_is_applied_and_exported(cli, chat_file, api):
    """Beside one of all teams, which it does not replace."""
    window = "        window_seconds: 60\n"
    by_team = FILE.replace(window, f"{window}        partition_by:\n          - label.team\n")
    rows = [
        "  - limit: chat--free/per-minute\n    quota: 90\n    reason: launch\n",
        "  - limit: chat--free/per-minute\n    partition:\n      label.team: web\n    quota: 120\n    reason: launch\n",
    ]
    head, _, _ = by_team.partition("overrides:\n")
    chat_file.write_text(head + "overrides:\n" + "".join(rows) + "token_overrides: []\n")
    assert cli("apply", "chat.yaml", "--yes").status == 0, cli("plan", "chat.yaml").err

    assert dict(Override.objects.values_list("partition", "quota")) == {"": 90, "label.team = web": 120}
    assert cli("export", "chat").out.partition("\n")[2] == chat_file.read_text()
    assert cli("plan", "chat.yaml").out.splitlines()[1] == "Nothing to change."

    chat_file.write_text(chat_file.read_text().replace("label.team: web", "label.owner: ann"))
    wrong = cli("plan", "chat.yaml")
    assert "Must name only what chat--free/per-minute is partitioned by (label.team), got label.owner." in wrong.err


def test_plan_and_apply_warn_of_a_unit_that_nothing_charges(cli, chat_file):
    """Of a new project, and of one that is there."""
    rest = "        algorithm: fixed_window\n        quota: 500\n        calendar: month\n        unit: usd\n"
    limit = f"      - name: usd\n{rest}"
    text = FILE.replace("    limits:\n      - name: per-minute\n", f"    limits:\n{limit}      - name: per-minute\n")
    chat_file.write_text(text)
    said = "Warning: policy chat--free, usd: Nothing has been charged in usd so far, and a limit in a unit that nothing"

    new = cli("plan", "chat.yaml")
    assert f"{said} is charged in admits all. Did you mean micros, millionths of USD?" in new.err
    chat_file.write_text(FILE)
    assert cli("apply", "chat.yaml", "--yes").status == 0
    chat_file.write_text(text)
    known = cli("plan", "chat.yaml")
    assert f"{said} is charged in admits all. Did you mean micros, millionths of USD?" in known.err
    assert (new.status, known.status) == (0, 0)

    applied = cli("apply", "chat.yaml", "--yes")
    assert said in applied.err
    chat_file.write_text(text.replace("quota: 500", "quota: 600"))
    (warning,) = json.loads(cli("apply", "chat.yaml", "--yes", "--json").out)["warnings"]
    assert (warning["policy"], warning["limit"], warning["field"]) == ("chat--free", "usd", "unit")
    assert warning["message"].startswith("Nothing has been charged in usd so far")


def test_money_makes_the_round_trip_and_little_of_it_is_told(cli, chat_file):
    """A file counts millionths, so that 500 is no budget of 500. The plan says it in the currency."""
    rest = "        algorithm: fixed_window\n        quota: 500\n        calendar: month\n        unit: micros\n"
    kept = "      - name: per-minute\n"
    text = FILE.replace(f"    limits:\n{kept}", f"    limits:\n      - name: usd\n{rest}{kept}")
    chat_file.write_text(text)

    new = cli("plan", "chat.yaml")
    assert "usd: 0.0005 USD per calendar month" in new.out
    said = "usd: 500 micros are 0.0005 USD. For 500.00 USD, write 500000000."
    assert f"Warning: policy chat--free, {said}" in new.err
    chat_file.write_text(text.replace("quota: 500\n", "quota: 500000000\n"))
    applied = cli("apply", "chat.yaml", "--yes")
    assert (applied.status, "Warning" in applied.err) == (0, False)
    assert cli("export", "chat").out.count("quota: 500000000\n        calendar: month\n        unit: micros\n") == 1
    chat_file.write_text(text)
    known = cli("plan", "chat.yaml")
    assert "usd: 500.00 USD per calendar month -> 0.0005 USD per calendar month" in known.out
    assert said in known.err
