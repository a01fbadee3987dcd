"""How many examples a law gets: a share of what the Hypothesis profile says, so that `make test-laws` gives each of them twenty times as many."""

from __future__ import annotations

from hypothesis import settings


def share(percent: int) -> settings:
    """For a law that is too dear for all examples of the profile (everyday: 50), `percent` of them."""
    return settings(max_examples=max(1, settings().max_examples * percent // 100))
