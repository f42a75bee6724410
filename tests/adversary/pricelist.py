"""
What the provider charges, and what each request costs by that. It imports nothing of the product.

All rates are dollars for a million tokens, which are as many micros for one token.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

SEARCH_FEE, CONTAINER_FEE = 10_000, 30_000  # micros
LONG = 200_000

_CLAUDE = {"input": "3", "output": "15", "read": "0.3", "write": "3.75"}
_GEMINI = {"input": "0.3", "output": "2.5", "read": "0.03", "audio": "1"}

MODELS: dict[str, dict[str, Any]] = {
    "oak-1": {
        "rates": {"input": "2", "output": "8", "read": "0.5"},
        "times": {"service_tier": {"priority": "2", "flex": "0.5"}},
    },
    # Charges for tiers, and the operator has entered nothing of that.
    "oak-bare": {
        "rates": {"input": "2", "output": "8", "read": "0.5"},
        "times": {"service_tier": {"priority": "2.5"}, "speed": {"fast": "6"}},
        "untold": ["times"],
    },
    "claude-ash-1": {
        "rates": {**_CLAUDE, "hour": "6"},
        "times": {"speed": {"fast": "6"}, "inference_geo": {"us": "1.1"}},
        "bounds": {"file": 20_000},
    },
    "claude-bare": {
        "rates": {**_CLAUDE, "hour": "6"},
        "times": {"speed": {"fast": "6"}, "inference_geo": {"us": "1.1"}},
        "untold": ["times", "hour"],
    },
    "gemini-2.5-fir": {
        "rates": _GEMINI,
        "times": {"service_tier": {"priority": "1.8"}},
        "untold": ["times"],
        "bounds": {"audio": 3_000, "file": 20_000},
    },
    "gemini-2.5-fir-image": {"rates": {**_GEMINI, "image_out": "30"}},
    "gemini-2.5-long": {
        "rates": {"input": "1.25", "output": "10"},
        "above": {"input": "2.5", "output": "15"},
    },
    "gpt-4o-audio-elm": {
        "rates": {"input": "2.5", "output": "10", "audio": "40", "audio_out": "80"},
        "bounds": {"audio": 3_000},
    },
    "gpt-4o-elm": {"rates": {"input": "2.5", "output": "10", "read": "1.25"}, "bounds": {"file": 20_000}},
    "gpt-5-search-preview": {"rates": {"input": "1.25", "output": "10"}},
    "oak-1:online": {"rates": {"input": "2", "output": "8"}},
    "oak-1:online:nitro": {"rates": {"input": "2", "output": "8"}},
    "groq/compound": {"rates": {"input": "0.15", "output": "0.6"}},
    "gpt-image-1": {"rates": {"input": "5", "output": "40"}},
    # Adds a prompt of its own to each request.
    "llama-verbose": {"rates": {"input": "1", "output": "1"}, "adds": 4_000, "bounds": {"added_tokens": 4_000}},
    "yew-embed": {"rates": {"input": "1", "output": "0"}},
}

ENTERED = {
    "input": "input", "output": "output", "read": "cached_input", "write": "cache_write", "hour": "cache_write_1h",
    "audio": "input_audio", "image_out": "output_image", "audio_out": "output_audio",
}  # fmt: skip
"""The class of the operator's prices for each rate here."""


def cost_of(model: str, tokens: dict[str, int], modifiers: dict[str, str], fees: int, factor: int) -> Fraction:
    """
    Return what a request costs, in micros.

    Args:
        tokens: By rate: ``input`` (neither read from nor written to the cache), ``read``, ``write``, ``hour``,
            ``audio``, ``output``, ``image_out``, ``audio_out``.
        modifiers: What the request asked for, such as a service tier.
        fees: Micros beside the tokens.
        factor: How many times all is charged because of a field that only this provider knows.
    """
    listed = MODELS[model]
    rates = dict(listed["rates"])
    if sum(tokens.get(name, 0) for name in ("input", "read", "write", "hour", "audio")) > LONG:
        rates |= listed.get("above", {})
    total = sum((Fraction(rates[name]) * count for name, count in tokens.items() if count), Fraction(0))
    for name, value in modifiers.items():
        total *= Fraction(listed.get("times", {}).get(name, {}).get(value, "1"))
    return total * factor + fees


def entries() -> list[dict[str, Any]]:
    """Return the list as an operator enters it: micros for a million tokens, and thousandths for multipliers."""
    return [_entry(model, listed) for model, listed in MODELS.items()]


def _entry(model: str, listed: dict[str, Any]) -> dict[str, Any]:
    untold = listed.get("untold", ())
    times = {} if "times" in untold else listed.get("times", {})
    multipliers = {
        f"{name}={value}": int(Fraction(factor) * 1_000)
        for name, values in times.items()
        for value, factor in values.items()
    }
    bounds = dict(listed.get("bounds", {}))
    added = bounds.pop("added_tokens", None)
    return {
        "model": model,
        **_rates(listed["rates"], untold),
        **({"tiers": [{"above_input": LONG, **_rates(listed["above"], ())}]} if "above" in listed else {}),
        **({"multipliers": multipliers} if multipliers else {}),
        **({"part_tokens": bounds} if bounds else {}),
        **({"added_tokens": added} if added else {}),
    }


def _rates(rates: dict[str, str], untold: Any) -> dict[str, int]:
    return {ENTERED[name]: int(Fraction(rate) * 1_000_000) for name, rate in rates.items() if name not in untold}
