"""The judgement on what instances report."""

from enforcement.store_calls.health import InstanceReport, judge


def test_a_fleet_in_order_has_no_judgement():
    """Also one whose instances are ahead of the revision that the caller knows, or still begin."""
    assert judge([InstanceReport("p-1", 7, "ok"), InstanceReport("p-2", 8, "starting")], 7) == []


def test_problems_come_first_and_name_their_instances_in_order():
    """An instance that names its problem is not judged as degraded once more, but may be behind as well."""
    found = judge(
        [
            InstanceReport("p-3", 6, "degraded", ["evicting"]),
            InstanceReport("p-1", 7, "degraded", ["evicting", "of_a_later_release"]),
            InstanceReport("p-2", 7, "degraded", ["of_a_later_release"]),
        ],
        7,
    )

    assert [(it.kind, it.level, it.instances) for it in found] == [
        ("evicting", "problem", ("p-1", "p-3")),
        ("degraded", "problem", ("p-2",)),
        ("behind", "warning", ("p-3",)),
    ]


def test_each_limit_is_judged_once():
    """With all instances that report it; the reason of a later release is shown as it is."""
    found = judge(
        [
            InstanceReport("p-2", 7, "ok", unmetered=["api/tokens"], unsupported=[("api/slots", "slots")]),
            InstanceReport(
                "p-1", 7, "ok", unmetered=["api/tokens", "api/money"], unsupported=[("api/new", "new_reason")]
            ),
        ],
        7,
    )

    assert [(it.limit, it.text, it.instances) for it in found] == [
        ("api/money", "requests give no cost in its unit, so it admits everything", ("p-1",)),
        ("api/tokens", "requests give no cost in its unit, so it admits everything", ("p-1", "p-2")),
        ("api/new", "new_reason", ("p-1",)),
        ("api/slots", "counts slots", ("p-2",)),
    ]
    assert {it.level for it in found} == {"warning"}
