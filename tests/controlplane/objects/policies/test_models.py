import json

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction

from controlplane.changes.audit.models import AppendOnly, AuditEntry
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy, column_of, columns_of
from controlplane.releases.publishing import compile
from enforcement.model.documents import parse_policy
from enforcement.model.limit_fields import FIELDS, REQUIRED
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.metered import Metering
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db

VALUES = [
    {"name": "a", "algorithm": "fixed_window", "quota": 100, "window_seconds": 60},
    {"name": "b", "algorithm": "token_bucket", "quota": 100, "window_seconds": 60, "burst": 20},
    {"name": "c", "algorithm": "sliding_window", "quota": 5, "window_seconds": 1, "unit": "tokens", "mode": "shadow"},
    {
        "name": "d",
        "algorithm": "fixed_window",
        "quota": 5,
        "calendar": "month",
        "time_zone": "Europe/Berlin",
        "anchor": 15,
        "partition_by": ["ip"],
        "match": {"methods": ["POST"], "path": "/v1/*", "attributes": {"model": ["a", "b"]}},
        "consistency": "leased",
        "on_store_failure": "deny",
    },
    {"name": "e", "algorithm": "fixed_window", "quota": 5, "calendar": "day", "anchor": "06:30"},
    {
        "name": "f",
        "algorithm": "fixed_window",
        "quota": 5,
        "calendar": "month",
        "unit": "tokens",
        "weights": {"cached_input": 0, "output": 1500},
        "unmetered": "count_only",
    },
    {"name": "h", "algorithm": "fixed_window", "quota": 5, "calendar": "month", "rollover": 9},
    *(
        {"name": "g", "algorithm": "fixed_window", "quota": 5, "calendar": "month", "unit": "micros", **rule}
        for rule in ({}, {"unpriced": "count_only"}, {"unpriced": {"charge_as": "gpt-4o"}})
    ),
]


@pytest.mark.parametrize("fields", VALUES, ids=lambda fields: fields["name"])
def test_a_row_holds_every_limit_that_can_be_enforced(fields):
    """What goes into a row comes out as it was."""
    value = LimitValue.from_json(fields)
    row = Limit(policy=PolicyFactory())

    row.assign(value)
    row.full_clean()
    row.save()

    assert Limit.objects.get().as_value() == value


def test_assigning_a_value_leaves_nothing_of_the_former():
    """A limit that is replaced keeps no field of the one before."""
    money = {"unit": "micros", "unpriced": "charge_as", "charge_as": "gpt-4o", "unmetered": "count_only"}
    window = {"window_seconds": None, "calendar": "month", "rollover": 9}
    row = LimitFactory(name="x", match_path="/v1/*", partition_by=["ip"], **window, **money)
    value = LimitValue.from_json({"name": "x", "algorithm": "fixed_window", "quota": 5, "calendar": "day"})

    row.assign(value)

    assert row.as_value() == value


@pytest.mark.parametrize(
    ("fields", "column"),
    [
        ({"unit": "requests", "weights": {"input": 1}}, "weights"),
        ({"unit": "tokens", "unpriced": "count_only"}, "unpriced"),
        ({"unit": "micros", "unpriced": "charge_as"}, "unpriced"),
        ({"unit": "micros", "charge_as": "gpt-4o"}, "charge_as"),
        ({"unit": "requests", "unmetered": "count_only"}, "unmetered"),
        ({"rollover": 5}, "rollover"),
        ({"window_seconds": None, "calendar": "month", "rollover": 0}, "rollover"),
        ({"window_seconds": None, "calendar": "month", "rollover": 2**53}, "rollover"),
    ],
)
def test_a_rule_that_a_limit_cannot_follow_is_refused_by_its_column(fields, column):
    """No row says what its unit or window cannot do, and no model is named in vain."""
    with pytest.raises(ValidationError) as refused:
        LimitFactory(**fields)

    assert list(refused.value.message_dict) == [column]


def test_rows_of_an_earlier_version_have_the_default_rules():
    """Its processes may still write some during an upgrade, without the new columns."""
    limit = LimitFactory(unit="micros")
    new = {"weights", "unpriced", "charge_as", "unmetered", "rollover"}
    names = [field.column for field in Limit._meta.concrete_fields if field.column not in new]
    copied = [{"id": "'lim_old'", "name": "'old'"}.get(name, name) for name in names]
    insert = f"INSERT INTO policies_limit ({', '.join(names)}) SELECT {', '.join(copied)} FROM policies_limit"
    with connection.cursor() as cursor:
        cursor.execute(insert)

    old = Limit.objects.get(pk="lim_old")

    assert old.as_value() == LimitValue.from_json({**limit.as_value().to_json(), "name": "old"})
    assert (old.weights, old.unpriced, old.charge_as, old.unmetered) == ({}, "deny", "", "deny")


def test_rules_of_metering_are_read_strictly_and_kept_short():
    """A policy holds what differs from the defaults, and its record names nothing else."""
    policy = PolicyFactory(metering={"estimate": "bound", "on_disconnect": "free", "default_cap": None})

    assert policy.metering == {"estimate": "bound", "on_disconnect": "free"}
    assert policy.as_record()["metering"] == policy.metering
    assert PolicyFactory(metering={"on_disconnect": "free", "default_cap": None}).metering == {}
    assert "metering" not in PolicyFactory().as_record()
    with pytest.raises(ValidationError) as refused:
        PolicyFactory(metering={"estimates": "bound"})
    assert refused.value.message_dict == {"metering": ["estimates: Unknown field."]}


def test_a_section_that_another_program_wrote_is_shown_as_the_default(admin_client):
    """Enforcers refuse it, and whoever saves the policy mends it."""
    policy = LimitFactory().policy
    Policy.objects.update(metering={"estimates": 5})

    assert Policy.objects.get().rules == Metering()
    assert admin_client.get(f"/admin/policies/policy/{policy.pk}/change/").status_code == 200


def test_metering_is_published_only_where_it_is_set():
    """Earlier enforcers refuse a document with a field that they do not know."""
    plain, own = LimitFactory().policy, LimitFactory(unit="tokens", weights={"input": 5}).policy
    own.metering = {"default_cap": 500}
    own.save()

    documents = compile.all_documents()

    assert "metering" not in documents[f"policy:{plain.pk}"]
    assert not documents[f"policy:{plain.pk}"]["limits"][0].keys() & {"weights", "unpriced", "unmetered", "rollover"}
    published = parse_policy(json.dumps(documents[f"policy:{own.pk}"]))
    assert published.metering == Metering(default_cap=500)
    assert published.limits[0].weights == {"input": 5}


def test_a_window_of_zero_is_refused_by_its_field():
    """No row holds a limit that an enforcer could not enforce."""
    with pytest.raises(ValidationError) as refused:
        LimitFactory(window_seconds=0)

    assert list(refused.value.message_dict) == ["window_seconds"]
    assert not Limit.objects.exists()


@pytest.mark.parametrize(
    ("fields", "column"),
    [
        ({"quota": -1}, "quota"),
        ({"match_methods": "POST"}, "match_methods"),
        ({"match_attributes": ["model"]}, "match_attributes"),
        ({"match_path": "v1/*"}, "match_path"),
        ({"calendar": "day"}, "window_seconds"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"partition_by": ["ip", "ip"]}, "partition_by"),
        ({"name": ""}, "name"),
    ],
)
def test_an_invalid_field_is_named(fields, column):
    """The error stands at the field that the form shows."""
    with pytest.raises(ValidationError) as refused:
        LimitFactory(**fields)

    assert column in refused.value.message_dict


def test_a_name_stands_once_in_a_policy():
    """Two limits of one name would share counters."""
    limit = LimitFactory(name="minute")

    with pytest.raises(ValidationError, match="already exists"):
        LimitFactory(policy=limit.policy, name="minute")


def test_a_policy_has_at_most_32_limits():
    """What one request has to be held against is bounded."""
    policy = PolicyFactory()
    LimitFactory.create_batch(32, policy=policy)

    with pytest.raises(ValidationError, match="at most 32"):
        LimitFactory(policy=policy)


def test_the_limits_of_a_policy_fit_into_its_document():
    """Enforcers read no document beyond 64 KiB, so none is made."""
    rules = {f"a{n}": "x" * 250 for n in range(16)}
    policy = PolicyFactory()
    LimitFactory.create_batch(14, policy=policy, match_attributes=rules)

    with pytest.raises(ValidationError, match="at most 61440 characters"):
        LimitFactory(policy=policy, match_attributes=rules)


def test_one_policy_is_global():
    """At most one policy falls on everything, also when two requests say so at once."""
    PolicyFactory(everywhere=True)

    with pytest.raises(IntegrityError), transaction.atomic():
        Policy.objects.create(slug="other", name="Other", is_global=True)


def test_the_global_policy_has_no_owner():
    """What one project owns cannot fall on the others."""
    with pytest.raises(ValidationError) as refused:
        PolicyFactory(everywhere=True, project=ProjectFactory())

    assert list(refused.value.message_dict) == ["project"]


@pytest.mark.parametrize("both", [True, False])
def test_an_override_has_one_holder(both):
    """An override is a token's or a project's: not both, not neither."""
    holders = {"token": TokenFactory(), "project": ProjectFactory()} if both else {"token": None}

    with pytest.raises(ValidationError, match="one of the two"):
        OverrideFactory(**holders)


def test_the_database_refuses_an_override_without_holder():
    """The row itself settles it, whoever writes."""
    limit = LimitFactory()

    with pytest.raises(IntegrityError), transaction.atomic():
        Override.objects.create(limit=limit, quota=1, reason="none")


def test_a_token_has_one_override_a_limit():
    """Two quotas for one limit would leave the choice to chance."""
    override = OverrideFactory()

    with pytest.raises(ValidationError, match="already exists"):
        OverrideFactory(limit=override.limit, token=override.token)


def test_an_override_is_judged_with_its_limit():
    """A burst is refused where the limit's algorithm has none."""
    with pytest.raises(ValidationError) as refused:
        OverrideFactory(limit=LimitFactory(algorithm="fixed_window"), burst=10)

    assert list(refused.value.message_dict) == ["burst"]


def test_an_override_of_another_projects_limit_is_refused():
    """It could never take effect."""
    limit = LimitFactory(policy=PolicyFactory(project=ProjectFactory()))

    with pytest.raises(ValidationError, match="another project"):
        OverrideFactory(limit=limit)


@pytest.fixture
def entry() -> AuditEntry:
    return AuditEntry.objects.create(
        actor="ann", channel="admin", action="policy.create", object_type="policy", object_id="1", object_label="x"
    )


def test_an_audit_entry_is_not_changed(entry):
    """What happened, happened."""
    entry.actor = "bob"

    with pytest.raises(AppendOnly):
        entry.save()
    with pytest.raises(AppendOnly):
        AuditEntry.objects.update(actor="bob")

    assert AuditEntry.objects.get().actor == "ann"


def test_an_audit_entry_is_not_deleted(entry):
    """No door removes a trace."""
    with pytest.raises(AppendOnly):
        entry.delete()
    with pytest.raises(AppendOnly):
        AuditEntry.objects.all().delete()

    assert AuditEntry.objects.count() == 1


def test_a_row_of_0_2_0_whose_path_matches_nothing_is_still_published():
    """It is shown, recorded and compiled; whoever edits it is told at the field."""
    limit = LimitFactory(name="x")
    Limit.objects.update(match_path="v1/*")
    row = Limit.objects.get()

    assert row.as_value().match.path == "v1/*"
    assert row.policy.as_record()["limits"][0]["match"] == {"path": "v1/*"}
    assert compile.documents([("policy", limit.policy_id)])[f"policy:{limit.policy_id}"]["limits"][0]["name"] == "x"
    with pytest.raises(ValidationError, match="Must begin with / or a wildcard"):
        row.full_clean()


def test_the_columns_are_those_of_the_table():
    """A column has the default, the choices and the bounds of its field, so that no row says another thing."""
    mine = {"id", "policy", "position"}
    columns = [column for field in FIELDS for column in columns_of(field)]
    assert sorted(columns) == sorted(field.name for field in Limit._meta.concrete_fields if field.name not in mine)
    for field in FIELDS:
        if field.parts:
            continue
        column = Limit._meta.get_field(columns_of(field)[0])
        assert column.null == (field.is_nullable and "integer" in field.schema["type"] and field.name != "anchor")
        assert {name for name, _ in column.choices or ()} == set(field.choices or ())
        assert column.max_length is None or column.max_length >= field.schema.get("maxLength", 0)
        if field.default is not REQUIRED and field.default is not None:
            assert column.get_default() == field.default


def test_a_row_leaves_out_each_default():
    """An older enforcer refuses a document with a field that it does not know."""
    row = LimitFactory.build(name="a", quota=100, window_seconds=60, algorithm="fixed_window")
    assert row.as_json() == {"name": "a", "algorithm": "fixed_window", "quota": 100, "window_seconds": 60}


@pytest.mark.parametrize(
    ("field", "column"),
    [
        ("quota", "quota"),
        ("match.path", "match_path"),
        ("match.attributes.model", "match_attributes"),
        ("match", "match_attributes"),
        ("unpriced", "unpriced"),
        ("limit", "__all__"),
    ],
)
def test_an_error_of_the_value_stands_at_its_column(field, column):
    """What belongs to no column stands at the whole limit."""
    assert column_of(field) == column
