"""The lines of a small ledger."""

HEADER = '{"ledger":1,"instance":"a","timeout_ms":25.0}'
DECLARED = (
    '{"counter":0,"key":"sg:{k}:f","policy":"",'
    '"limit":{"name":"rate","algorithm":"fixed_window","quota":1,"window_seconds":60}}'
)
LINE = (
    '{"id":"a-1","started_at_us":1,"ended_at_us":2,"decided_at_us":1,"allowed":true,"reason":"ok","source":"store",'
    '"cause":"","ambiguous":false,"revision":0,"counters":[0],"costs":[1],"denied_by":[]}'
)
