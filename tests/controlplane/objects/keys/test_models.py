import pytest
from django.core.exceptions import ValidationError

from controlplane.objects.keys.models import ManagementKey
from tests.factories import ManagementKeyFactory, ProjectFactory

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("scopes", [[], ["projects:reed"], "projects:read", {"projects:read": 1}, [1], [[]]])
def test_a_management_key_has_known_scopes(scopes):
    """A scope that nothing checks for is refused when the key is made."""
    with pytest.raises(ValidationError) as refused:
        ManagementKeyFactory(scopes=scopes)

    assert list(refused.value.message_dict) == ["scopes"]


def test_a_management_key_allows_its_scopes_only():
    """A key without the scope may not, and the star may all."""
    reader, all_powerful = ManagementKeyFactory(scopes=["projects:read"]), ManagementKeyFactory(scopes=["*"])

    assert reader.allows("projects:read")
    assert not reader.allows("projects:write")
    assert all_powerful.allows("projects:write")


def test_a_management_key_is_issued_for_its_projects():
    """A key can be bound to some projects."""
    project = ProjectFactory()

    key, secret = ManagementKey.objects.issue(name="ci", scopes=["tokens:read"], projects=[project])

    assert secret.startswith("sg_mgmt_")
    assert list(key.projects.all()) == [project]
