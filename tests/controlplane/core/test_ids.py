from controlplane.core.ids import new_id


def test_an_id_says_its_kind():
    """An id in a log tells what it names."""
    kind, _, rest = new_id("proj").partition("_")

    assert kind == "proj"
    assert len(rest) == 26
    assert set(rest) <= set("0123456789abcdefghjkmnpqrstvwxyz")


def test_ids_sort_by_the_time_they_were_made():
    """Ordering by id is ordering by age, so pages of a list do not shift."""
    ids = [new_id("tok") for _ in range(1000)]

    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
