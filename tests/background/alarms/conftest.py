"""Those who are told, and a receiver that is watched."""

from collections.abc import Iterator

import pytest
from targets import Hook, Post, hook, post_office
from watched import SECRET, Ward


@pytest.fixture
def webhook() -> Iterator[Hook]:
    with hook() as kept_:
        yield kept_


@pytest.fixture
def office() -> Iterator[Post]:
    with post_office() as kept_:
        yield kept_


@pytest.fixture
def told(webhook: Hook, office: Post) -> dict[str, object]:
    """Settings that have both told."""
    return {
        "alarm_url": webhook.url,
        "alarm_secret": SECRET,
        "alarm_mail_to": ("ops@example.com",),
        "smtp_url": office.url,
        "forward_allow": frozenset(["127.0.0.1"]),
    }


@pytest.fixture
def ward(make_receiver, make_database, told) -> Ward:
    return Ward(make_receiver, make_database("sqlite"), **told)
