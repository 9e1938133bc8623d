"""How often what a document promises is tried: with TESTS=full as often as its test says.

Else a third of that. Each run tries other requests.
"""

import os

_SHARE = 1 if os.environ.get("TESTS") == "full" else 3


def examples(most: int) -> int:
    """How many examples to try now, of `most`."""
    return most // _SHARE
