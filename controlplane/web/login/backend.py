"""The permissions of users, which come from their memberships."""

from typing import Any

from django.contrib.auth.backends import ModelBackend

from controlplane.objects.people.roles import PERMISSIONS
from controlplane.objects.people.scope import is_member, is_operator


class RoleBackend(ModelBackend):
    """
    The backend that checks passwords as Django does, and takes permissions from memberships.

    A user has a permission if the role in some project includes it. Which rows it applies to is narrowed by
    :class:`controlplane.web.scope.rows.RowScope`.
    """

    def has_perm(self, user_obj: Any, perm: str, obj: object = None) -> bool:
        if is_operator(user_obj):
            return True
        return perm in PERMISSIONS and is_member(user_obj, PERMISSIONS[perm])

    def has_module_perms(self, user_obj: Any, app_label: str) -> bool:
        if is_operator(user_obj):
            return True
        # A page asks for each app.
        return any(perm.startswith(f"{app_label}.") and self.has_perm(user_obj, perm) for perm in PERMISSIONS)

    def get_all_permissions(self, user_obj: Any, obj: object = None) -> set[str]:
        """Return the permissions of the user's roles. Operators have others besides, which no code needs as a list."""
        return {perm for perm in PERMISSIONS if self.has_perm(user_obj, perm)}

    def get_user_permissions(self, user_obj: Any, obj: object = None) -> set[str]:
        return self.get_all_permissions(user_obj)

    def get_group_permissions(self, user_obj: Any, obj: object = None) -> set[str]:
        return set()
