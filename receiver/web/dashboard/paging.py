"""Links to other pages of the same list."""

from urllib.parse import urlencode

from flask import request


def link(**changed: str | None) -> str:
    """Give the URL of this request with some parameters changed; None takes one out."""
    pairs = [pair for pair in request.args.items(multi=True) if pair[0] not in changed]
    pairs += [(name, value) for name, value in changed.items() if value is not None]
    return f"{request.path}?{urlencode(pairs)}" if pairs else request.path
