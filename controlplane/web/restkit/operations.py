"""Texts of the OpenAPI document for each operation: a line for lists, and a sentence or two for readers."""

from typing import NamedTuple


class Words(NamedTuple):
    """The words for a resource, as in "Create a policy" and "List policies"."""

    one: str
    many: str


RESOURCES = {
    "projects": Words("project", "projects"),
    "tokens": Words("token", "tokens"),
    "policies": Words("policy", "policies"),
    "overrides": Words("override", "overrides"),
    "memberships": Words("membership", "memberships"),
    "prices": Words("price", "prices"),
    "revisions": Words("revision", "revisions"),
    "instances": Words("instance", "instances"),
    "reservations": Words("reservation", "reservations"),
    "usage": Words("usage", "usage"),
    "denials": Words("sampled denial", "sampled denials"),
    "jobs": Words("job", "jobs"),
    "management-keys": Words("management key", "management keys"),
    "alert-rules": Words("alert rule", "alert rules"),
    "drafts": Words("draft of a policy", "drafts of policies"),
    "alert-events": Words("alert event", "alert events"),
    "webhooks": Words("webhook", "webhooks"),
    "deliveries": Words("delivery", "deliveries"),
    "suspensions": Words("suspension", "suspensions"),
    "audit": Words("audit entry", "audit entries"),
    "global": Words("global policy", "global policies"),
}

# For each action of the base classes: the summary, and the description before that of the resource.
ACTIONS = {
    "list": ("List {many}", "Return a page of the {many} that the key may see."),
    "create": ("Create {a} {one}", "Create {a} {one} and return it. `Location` has its address."),
    "retrieve": ("Read {a} {one}", "Return the {one}, with the `ETag` that a conditional change needs."),
    "update": ("Replace {a} {one}", "Replace all fields of the {one}. A field that is left out gets its default."),
    "partial_update": ("Change {a} {one}", "Change the fields that the body names. All others stay as they are."),
    "destroy": ("Delete {a} {one}", "Delete the {one}, together with what belongs to it."),
}
# Operations whose words differ from those of their action, by operation id.
SUMMARIES = {
    "apply": "Apply policy files",
    "counters_retrieve": "Read the counters of a token or project",
    "counters_reset": "Reset counters",
    "explain": "Explain a decision",
    "global_retrieve": "Read the global policy",
    "global_update": "Choose the global policy",
    "preview": "Preview a policy",
    "prices_update": "Set a price",
    "prices_estimates_list": "List what was learned of estimates",
    "revisions_rollback": "Roll back to a revision",
    "revisions_undo": "Undo a revision",
    "projects_tokens_list": "List the tokens of a project",
    "tokens_revoke": "Revoke a token",
    "tokens_rotate": "Rotate a token",
    "tokens_suspend": "Suspend a token",
    "tokens_resume": "Resume a token",
    "projects_suspend": "Suspend a project",
    "projects_resume": "Resume a project",
    "management_keys_revoke": "Revoke a management key",
    "management_keys_rotate": "Rotate a management key",
    "reservations_settle": "Settle a reservation by hand",
    "reservations_release": "Give back a reservation",
    "jobs_destroy": "Cancel a job",
    **{f"{name}_batch": f"Create several {name}" for name in ("projects", "tokens", "policies", "overrides")},
    "projects_update": "Create or replace a project",
    "policies_update": "Create or replace a policy",
    "suspensions_create": "Suspend a value of an attribute",
    "suspensions_destroy": "Resume what is suspended",
    "webhooks_rotate": "Rotate the secret of a webhook",
    "webhooks_test": "Send a test to a webhook",
    "deliveries_replay": "Send a message again",
    "break_glass_retrieve": "Read whether the glass is broken",
    "break_glass_update": "Break the glass",
    "break_glass_destroy": "Mend the glass",
    "me_retrieve": "Read the own token",
    "me_usage_retrieve": "Read the own usage",
    "usage_list": "List usage",
    "usage_export": "Export usage",
    "audit_export": "Export audit entries",
    "statements_export": "Export a statement",
    "usage_metered_list": "List metered usage",
    "usage_models_list": "List the usage of each model",
    "usage_labels_list": "List the usage of each value of a label",
}
CREATED_OR_REPLACED = (
    "Replace all fields of the {one}, or create it under the slug in the address. A field that is left out gets its "
    "default, but for the slug. With `If-None-Match: *` it is only created, and with `If-Match` only replaced."
)
DESCRIPTIONS = {
    "projects_update": CREATED_OR_REPLACED.format(one="project"),
    "policies_update": CREATED_OR_REPLACED.format(one="policy") + " A limit that keeps its name keeps its usage.",
    "prices_update": "Set the price of an operator for a model from a date on. It replaces the operator's price with "
    "the same model and beginning, if there is one. Otherwise it is new, and `Location` has its address.",
    "prices_estimates_list": "Return a page of the numbers that were learned for typical estimates.",
    "global_update": "Choose the policy, or null for none.",
    "reservations_list": "List the open and lost reservations, the oldest first, or the settled ones, the newest "
    "first. Of those that are open or lost, at most 1,000 are read. If there are more, `truncated` is true.",
    "reservations_retrieve": "Return the reservation, if it can be settled, or was lost or settled by hand lately.",
    "jobs_retrieve": "Return the job with its progress.",
    "jobs_destroy": "Cancel the job, if it has not ended. What it has done until now stays done.",
    "suspensions_create": "Suspend a value of an attribute, so that every proxy refuses it within a second.",
    "suspensions_destroy": "End the suspension, so that every proxy lets it in again within a second.",
    "suspensions_retrieve": "Return the suspension.",
    "alert_events_retrieve": "Return the event.",
    "deliveries_retrieve": "Return the delivery with its last attempts, and with the message.",
    "break_glass_retrieve": "Return the end and the reason. The end is null if every limit is as it was saved.",
    "break_glass_update": "Make every published limit a shadow, until the end or a deletion. Repeating it gives "
    "another end.",
    "break_glass_destroy": "Enforce every limit again. If the glass is whole, this changes nothing.",
    "usage_export": "Stream the usage that the query chooses.",
    "audit_export": "Stream the entries that the query chooses, with their place in the chain.",
    "statements_export": "Stream the statement that the query chooses. Each line has a `kind`: total, the group, "
    "limit, or correction for what arrived after the month was closed.",
    "usage_metered_list": "Return a page of metered usage.",
    "usage_models_list": "Return the totals of each model.",
    "usage_labels_list": "Return the totals of each value of a label.",
    "revisions_retrieve": "Return the revision with its documents, and the instances that do not run it yet.",
}


def summary_of(operation_id: str, resource: str, action: str) -> str:
    """Return the summary of an operation, which is different for each."""
    return SUMMARIES.get(operation_id) or _filled(ACTIONS[action][0], resource)


def description_of(operation_id: str, resource: str, action: str) -> str:
    """Return the description of an operation of the base classes, or "" for an action that describes itself."""
    if operation_id in DESCRIPTIONS:
        return DESCRIPTIONS[operation_id]
    return _filled(ACTIONS[action][1], resource) if action in ACTIONS and resource in RESOURCES else ""


def _filled(text: str, resource: str) -> str:
    words = RESOURCES[resource]
    return text.format(one=words.one, many=words.many, a="an" if words.one[0] in "aeio" else "a")
