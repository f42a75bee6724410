#!/bin/sh
# Write the store's accounts from the environment, then become the server.
set -eu
umask 077
accounts="${TMPDIR:-/tmp}/users.acl"

# control:  the control plane and its workers; the store is theirs.
# enforcer: a proxy. It reads documents, and writes counters (of projects, and of limits in code, whose tags are 22
#           characters long), heartbeats and usage. It can change no policy, no token and no function; Valkey counts
#           FUNCTION among the ordinary writes, so that it has to be taken back by name.
# health:   may ask whether the server lives.
cat >"$accounts" <<ACCOUNTS
user default off
user control on >${CONTROL_PASSWORD:?} ~* &* +@all
user enforcer on >${ENFORCER_PASSWORD:?} %R~sg:{doc}:* ~sg:{proj_*}:* ~sg:{??????????????????????}:* ~sg:{fleet}:* ~sg:{usage}:* +@read +@write +@connection +time +fcall +fcall_ro -@dangerous -function
user health on nopass +ping
ACCOUNTS

exec valkey-server "$@" --aclfile "$accounts"
