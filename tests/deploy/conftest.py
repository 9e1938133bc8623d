"""Two receivers on a real PostgreSQL behind each proxy, with the files of deploy/."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from nodes import Node, running_nodes
from proxies import Proxy, running_proxy


@dataclass
class Site:
    """A proxy, the nodes behind it and their database."""

    proxy: Proxy
    nodes: list[Node]
    database_url: str


@pytest.fixture(params=["nginx", "haproxy"])
def site(
    request: pytest.FixtureRequest, tmp_path: Path, make_database: Callable[[str], str]
) -> Iterator[Site]:
    """Two nodes behind each proxy in turn."""
    database_url = make_database("postgresql18")
    with (
        running_nodes(database_url, tmp_path) as nodes,
        running_proxy(request.param, tmp_path / "proxy", [node.port for node in nodes]) as proxy,
    ):
        yield Site(proxy, nodes, database_url)
