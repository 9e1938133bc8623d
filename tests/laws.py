"""How often a law is tried: with TESTS=full as often as its test says, else a third of that.

Each run tries others, but for those of documents; what a law has once been broken by is an example
of its own.
"""

import os

_SHARE = 1 if os.environ.get("TESTS") == "full" else 3


def examples(most: int) -> int:
    """How many examples to try now, of `most`."""
    return most // _SHARE
