"""Receivers as they run in production, each for a test or a module, by themselves or at a site."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import SERVE, Served, running
from sites import site, sites  # noqa: F401 - fixtures


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`running`, with a folder of this test."""

    def make(database_url: str, *arguments: Any, **environment: str) -> Any:
        return running(database_url, tmp_path, *arguments, **environment)

    return make


@pytest.fixture(params=["sqlite", "postgresql18"])
def served(
    request: pytest.FixtureRequest, make_database: Callable[[str], str], run: Callable[..., Any]
) -> Iterator[Served]:
    """A receiver of two workers, on each kind of database."""
    with run(make_database(request.param), (*SERVE, "--workers", "2")) as served:
        yield served


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A receiver on SQLite that takes at most 4,096 bytes; one for all tests of a module."""
    folder = tmp_path_factory.mktemp("framed")
    url = f"sqlite:///{folder}/receiver.db"
    with running(url, folder, (*SERVE, "--workers", "2"), RECEIVER_MAX_BODY_BYTES="4096") as served:
        yield served
