"""The names of what is measured, in the order of the table."""

SHAPES = (
    "check-1",
    "check-3",
    "check-attributes",
    "hit-fixed",
    "hit-sliding",
    "hit-bucket",
    "hit-3",
    "check-leased",
    "hit-leased",
    "check-denied",
    "hit-denied",
    "fallback",
    "admit",
    "peek",
    "aio-check",
    "aio-check-50",
    "asgi-strict",
    "asgi-leased",
    "headers",
    "limits",
    "metered-tokens",
    "metered-money",
    "metered-bound",
    "chunk-chat",
    "chunk-responses",
    "chunk-completions",
    "chunk-anthropic",
    "chunk-gemini",
    "chunk-bedrock",
    "chunk-invoke",
)
STORE_TIME = {"check-1": "store-1", "check-3": "store-3"}
"""Shapes during which the store's own time for a decision is read, and the row that it goes to."""
IMPORTS, COUNTERS, IDLE = "import", "counters", "idle"
FOOTPRINTS = (IMPORTS, COUNTERS, IDLE)
"""What is measured in fresh processes."""
