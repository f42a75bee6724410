"""A check whether the store belongs to another installation."""

from typing import Any

from django.conf import settings
from django.core import checks
from django.db import DatabaseError

from controlplane.core import store
from controlplane.publishing.installation import other_owner, sentence
from enforcement.store.client import STORE_ERRORS


@checks.register("store", deploy=True)
def store_is_ours(**_: Any) -> list[checks.CheckMessage]:
    try:
        owner = other_owner(store.connection(settings.PUBLISH_TIMEOUT_SECONDS))
    except (*STORE_ERRORS, DatabaseError):
        return []  # another check reports the store, and before the first migration there is no table
    if owner is None:
        return []
    message, hint = sentence(owner).split(". ", 1)
    return [checks.Warning(f"{message}. Nothing is published.", f"{hint}.", id="sluicegate.W009")]
