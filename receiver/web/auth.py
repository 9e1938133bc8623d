"""Who asks what: a request to the API, and the token that came with it."""

from collections.abc import Sequence
from typing import cast

from flask import g, request

from receiver.errors import Forbidden
from receiver.instances.tokens import Bearer
from receiver.web import answers, services
from receiver.web.answers import Question


def question() -> Question:
    """This request, for those who answer without Flask."""
    return Question(
        path=request.path,
        query_string=request.query_string.decode("latin-1"),
        authorization=request.headers.get("Authorization"),
        if_none_match=request.headers.get("If-None-Match"),
        peer=request.remote_addr or "",
    )


def authenticate() -> None:
    """Find out whose token came with this request. Raises Unauthenticated, TooManyRequests."""
    g.bearer = answers.authenticated(services(), question())


def who() -> Bearer:
    """Whose token this is."""
    return cast("Bearer", g.bearer)


def check_instances(named: Sequence[str]) -> None:
    """Refuse instances that were asked for by name and that the token does not reach."""
    answers.check_reach(who(), named)


def check_may_act() -> None:
    """Refuse a token that may only look. Raises Forbidden."""
    if who().scope != "operate":
        raise Forbidden("this needs a token of the scope operate")
