"""Who asks: the bearer token of an API request."""

from collections.abc import Sequence
from typing import cast

from flask import g, request

from receiver.storage.tokens import Bearer
from receiver.web import answers, services


def authenticate() -> None:
    """Find out whose token came with this request. Raises Unauthenticated."""
    g.bearer = answers.authenticated(services(), request.headers.get("Authorization"))


def who() -> Bearer:
    """Whose token this is."""
    return cast("Bearer", g.bearer)


def check_instances(named: Sequence[str]) -> None:
    """Refuse instances that were asked for by name and that the token does not reach."""
    answers.check_reach(who(), named)
