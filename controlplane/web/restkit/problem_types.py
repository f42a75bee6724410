"""The kinds of problems that REST answers with: what each means, and what a program or its author does about it."""

from typing import NamedTuple


class ProblemType(NamedTuple):
    """
    A kind of problem.

    Attributes:
        title: What happened, the same for every occurrence.
        meaning: When it occurs, in a sentence or two of Markdown.
        remedy: What to do, in the same way.
    """

    status: int
    title: str
    meaning: str
    remedy: str


# The advice to retry with the same Idempotency-Key.
_SAFE = "Send the request again with the same `Idempotency-Key`, so that the change is not made twice."

# By the member "code" of a problem.
TYPES = {
    "already_rotated": ProblemType(
        409,
        "The token was rotated before",
        "A token is rotated once. `detail` names the token that replaced it.",
        "Use the token that replaced it, or rotate that one. If its secret was lost, rotate it with an overlap.",
    ),
    "already_settled": ProblemType(
        409,
        "The reservation is settled already",
        "Its own process or somebody else was faster. Nothing was changed.",
        "Read the reservation to see how it was settled. There is nothing left to do.",
    ),
    "authentication_failed": ProblemType(
        401,
        "The management key is not valid",
        "The key in `Authorization` is unknown, revoked or expired, or it is no management key. The response does not "
        "say which.",
        "Send a live key as `Authorization: Bearer sg_mgmt_...`. An operator creates one in the admin.",
    ),
    "bad_request": ProblemType(
        400,
        "The request was refused before it was read",
        "For example, the header `Host` names a host that this installation does not serve.",
        "Check the address. An operator finds the reason in the log under `request_id`.",
    ),
    "body_too_large": ProblemType(
        413,
        "The body is too large",
        "`detail` has the largest size in bytes. The connection is closed, because the rest of the body is not read.",
        "Send less at once, for example a batch in several parts.",
    ),
    "cannot_be_undone": ProblemType(
        409,
        "The revision cannot be undone",
        "Everything that it changed was changed again since, or the earlier state breaks a rule by now. `detail` says "
        "which.",
        "Change the objects themselves, or roll back to an earlier revision.",
    ),
    "conflict": ProblemType(
        409,
        "Another request changed the same object at the same time",
        "Both cannot be kept. This one changed nothing.",
        "Read the object again, and repeat the request.",
    ),
    "database_unavailable": ProblemType(
        503,
        "The database is unavailable",
        "It cannot be reached, or another change kept it busy for too long. Nothing was changed.",
        f"Wait as `Retry-After` says. {_SAFE}",
    ),
    "exceeds_own_key": ProblemType(
        403,
        "The other key may do more than the key that asks",
        "A key changes, rotates and revokes only keys that are no more than itself. `detail` names in what the other "
        "one is more.",
        "Use a key with these scopes, projects and networks, and no earlier end.",
    ),
    "expired": ProblemType(
        401,
        "The token has expired",
        "Every proxy refuses it, and so does this address of consumers.",
        "Get a new token from whoever gave you this one.",
    ),
    "header_not_supported": ProblemType(
        400,
        "A header would not have done what it says",
        "For example `If-Match` with a batch, whose objects have no version yet, or `If-Unmodified-Since`, because "
        "objects have versions and no times. Nothing was changed, because the change would not have been protected.",
        "Leave out the header that `detail` names. To change an object only if it is as you read it, send its `ETag` "
        "as `If-Match` to its own address.",
    ),
    "https_required": ProblemType(
        403,
        "This address is served over HTTPS only",
        "The request came over plain HTTP, and is not redirected, so that the mistake is noticed.",
        "Use `https://`. If the request carried a key, replace the key, because it was sent unencrypted.",
    ),
    "idempotency_key_reused": ProblemType(
        422,
        "The Idempotency-Key belongs to another request",
        "The key was used in the last 24 hours for another method, address or body. Nothing was changed.",
        "Send a new key for a new request, and the same key only with the same request.",
    ),
    "in_use": ProblemType(
        409,
        "The object is still used",
        "Others need it, for example a token its policy. `detail` names some of them.",
        "Give these another object first, then repeat the deletion.",
    ),
    "inactive_project": ProblemType(
        403,
        "The project is not active",
        "Its tokens are refused everywhere for now.",
        "Ask whoever runs the project.",
    ),
    "insufficient_scope": ProblemType(
        403,
        "The management key lacks a scope",
        "The key is valid, and may not do this. `detail` and the header `WWW-Authenticate` name the scope.",
        "Use a key with this scope. An operator creates one in the admin.",
    ),
    "job_ended": ProblemType(
        409,
        "The job has ended",
        "There is nothing left to cancel. What it has done stays done.",
        "Read the job for its result.",
    ),
    "key_limited_to_projects": ProblemType(
        403,
        "The management key is limited to some projects",
        "The request concerns all projects, or one that the key does not name. If the projects of a key are deleted, "
        "it works for none.",
        "Use a key for all projects, or one that names the project.",
    ),
    "length_required": ProblemType(
        411,
        "The body has no length",
        "The request has a `Transfer-Encoding`, which is not read, so that no change is made from a part of a body.",
        "Send the body with `Content-Length`.",
    ),
    "method_not_allowed": ProblemType(
        405,
        "The address does not have this method",
        "The header `Allow` names the methods that it has.",
        "Use one of them. The reference lists what each address can do.",
    ),
    "network_not_allowed": ProblemType(
        403,
        "The management key may not be used from this address",
        "The key is limited to networks. `detail` has the address that was seen.",
        "Send the request from one of these networks, or have an owner of the key change them.",
    ),
    "not_acceptable": ProblemType(
        406,
        "The response would have another media type",
        "The header `Accept` allows none of those that this address can send.",
        "Allow `application/json`, or the types that `detail` names.",
    ),
    "not_authenticated": ProblemType(
        401,
        "The request has no management key",
        "Every address but the documentation needs one.",
        "Send `Authorization: Bearer sg_mgmt_...`. An operator creates a key in the admin.",
    ),
    "not_found": ProblemType(
        404,
        "There is nothing at this address",
        "It does not exist, was deleted, or belongs to a project that the key does not name. The response does not say "
        "which.",
        "Check the address and the key. Addresses have no slash at the end.",
    ),
    "parse_error": ProblemType(
        400,
        "The body cannot be read",
        "It is not JSON in UTF-8, or has something on which readers disagree: a name twice, `NaN`, an infinity, NUL, "
        "or half of a surrogate pair.",
        "Send strict JSON. `detail` says what is wrong.",
    ),
    "permission_denied": ProblemType(
        403,
        "The management key may not do this",
        "The key may read the object and not change it, for example a policy that all projects share.",
        "Use a key for all projects.",
    ),
    "plan_changed": ProblemType(
        409,
        "Something was changed after the plan was made",
        "The request would do something else than its plan says. Nothing was changed.",
        "Ask for a new plan with `dry_run=true`, and send that one. After a refused `apply`, `state` names the present "
        "state.",
    ),
    "price_of_the_catalogue": ProblemType(
        409,
        "The price comes from the catalogue",
        "Prices of the catalogue are replaced when it is read again, so they are not changed by hand.",
        "Set a price of your own for the same model, which comes before that of the catalogue.",
    ),
    "rate_limited": ProblemType(
        429,
        "Too many requests to the API",
        "Each key has a limit, and so has each address without a valid key. `RateLimit` says how many requests are "
        "left.",
        f"Wait as `Retry-After` says. {_SAFE}",
    ),
    "request_running": ProblemType(
        409,
        "The first request with this Idempotency-Key has not ended",
        "Its change is made or undone within seconds.",
        "Wait as `Retry-After` says, and send the same request with the same key again.",
    ),
    "reset_unfinished": ProblemType(
        503,
        "The reset is recorded but not finished",
        "The store or the database became unavailable after the audit entry was written. Counters may be as before.",
        "Send the reset again when the store is back. A second reset does no harm.",
    ),
    "revoked": ProblemType(
        401,
        "The token was revoked",
        "Every proxy refuses it, and so does this address of consumers.",
        "Get a new token from whoever gave you this one.",
    ),
    "server_error": ProblemType(
        500,
        "An unexpected error occurred",
        "It is a fault of the server, and its log has the details under `request_id`. A change may or may not be made.",
        f"{_SAFE} If it fails again, give the `request_id` to an operator.",
    ),
    "settlement_unfinished": ProblemType(
        503,
        "The settlement is recorded but not finished",
        "The store became unavailable after the settlement was recorded. A worker corrects the counters later, once.",
        "Nothing. Read the reservation again: its state is `settled` when the counters are corrected.",
    ),
    "stale_version": ProblemType(
        412,
        "The object is not in the state that the request expects",
        "`If-Match` names another version than the present one, or `If-None-Match: *` found that the object exists.",
        "Read the object, decide again, and send its new `ETag`. The header `ETag` of this response has it.",
    ),
    "source_unavailable": ProblemType(
        503,
        "What this address reads cannot be read",
        "Usage, counters or heartbeats are damaged, or their tables or keys are. Changes do not depend on them.",
        "Try again later. If it lasts, tell whoever operates Sluicegate. The log of the control plane has the error.",
    ),
    "store_unavailable": ProblemType(
        503,
        "The store is unavailable",
        "Redis or Valkey does not answer, and this request needs it. Nothing was changed.",
        "Wait as `Retry-After` says, and try again.",
    ),
    "suspended": ProblemType(
        403,
        "The access is suspended",
        "The token, its project or one of its labels is suspended for now.",
        "Ask whoever runs the project.",
    ),
    "token_not_live": ProblemType(
        409,
        "The token has ended",
        "A token that is revoked or expired cannot be rotated.",
        "Create a new token.",
    ),
    "token_required": ProblemType(
        401,
        "A token is required",
        "This address is for consumers, who show a token of a project and not a management key.",
        "Send `Authorization: Bearer sg_live_...`.",
    ),
    "too_many_items": ProblemType(
        413,
        "The batch has too many items",
        "One request creates up to 1,000 tokens, or up to 10,000 policies, projects or overrides, with `dry_run=true` "
        "also up to 1,000. Nothing was created.",
        "Send the items in several batches, each with an `Idempotency-Key` of its own. No job creates tokens, because "
        "only the response to their creation has their secrets.",
    ),
    "unknown_token": ProblemType(
        401,
        "The token is not known",
        "It is no token of a project, or was deleted.",
        "Check it, or get a new one from whoever gave you this one.",
    ),
    "unreadable": ProblemType(
        409,
        "The store has a record that this release cannot read",
        "A newer release has written the reservation.",
        "Upgrade the control plane, or let the process of the reservation settle it.",
    ),
    "unsupported_media_type": ProblemType(
        415,
        "The body has a form that is not read",
        "Bodies are `application/json`. Those of PATCH may be `application/merge-patch+json`. They are not compressed.",
        "Set `Content-Type`, and send the body without `Content-Encoding`.",
    ),
    "validation_error": ProblemType(
        400,
        "The request is not valid",
        "`errors` names each field by a JSON pointer into the body, or each parameter of the query, with the rule that "
        "it breaks. Unknown fields and parameters are refused, too. Nothing was changed.",
        "Correct what `errors` names. The reference has the rules of each field.",
    ),
}
