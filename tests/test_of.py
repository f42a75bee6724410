"""The tests of a module are found by its path, and else by what they import."""

import pytest

from tests import of
from tests.of import files_nearby, files_that_import, modules, path_of


@pytest.mark.parametrize(
    ("named", "first"),
    [
        ("enforcement.plan.decision", "tests/enforcement/plan/test_decision.py"),
        ("enforcement/doors/_in_code.py", "tests/enforcement/doors/test_in_code.py"),
        (
            "controlplane/releases/publishing/management/commands/publish.py",
            "tests/controlplane/releases/publishing/test_publish_command.py",
        ),
    ],
)
def test_the_file_at_the_path_comes_first(named, first):
    assert of.tests_of(path_of(named))[0] == first


def test_a_name_of_a_package_counts_for_the_module_that_it_is_from():
    """``from enforcement import Limiter`` uses enforcement/limiter.py."""
    assert "tests/enforcement/service/test_trust.py" in files_that_import("enforcement/limiter.py")


def test_a_module_that_no_test_imports_leads_to_the_tests_of_its_neighbours():
    assert not files_that_import("enforcement/plan/sentences.py")
    assert "tests/enforcement/plan/test_decision.py" in files_nearby("enforcement/plan/sentences.py")


def test_what_is_no_module_is_refused():
    with pytest.raises(SystemExit, match="no such module"):
        path_of("enforcement.nothing")
    assert "enforcement/nothing.py" not in modules()
