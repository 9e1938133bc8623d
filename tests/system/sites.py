"""Two receivers on a real PostgreSQL behind both proxies, with the files of deploy/."""

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from cryptography.fernet import Fernet
from nodes import Node, running_nodes
from processes import free_port
from proxies import Proxy, running_proxy


@dataclass
class Site:
    """A proxy, the nodes behind it and their database; where they look for the vendor."""

    proxy: Proxy
    nodes: list[Node]
    database_url: str
    vendor: str
    encryption_key: str


@pytest.fixture(scope="session")
def sites(postgresql18: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Site]]:
    """Both proxies in front of the same two nodes, for all tests of a process."""
    with psycopg.connect(postgresql18, autocommit=True) as connection:
        connection.execute("CREATE DATABASE site TEMPLATE migrated")
    database_url = postgresql18.replace("/postgres?", "/site?", 1)
    folder = tmp_path_factory.mktemp("site")
    vendor, encryption_key = f"127.0.0.1:{free_port()}", Fernet.generate_key().decode()
    settings = {
        "OPEN_CONNECTORS_URL": f"http://{vendor}/elements/api-v2",
        "RECEIVER_ENCRYPTION_KEYS": encryption_key,
        "RECEIVER_PUBLIC_URL": "https://hooks.example.com",
    }
    with running_nodes(database_url, folder, **settings) as nodes:
        ports = [node.port for node in nodes]
        with (
            running_proxy("nginx", folder / "nginx", ports) as nginx,
            running_proxy("haproxy", folder / "haproxy", ports) as haproxy,
        ):
            yield {
                proxy.name: Site(proxy, nodes, database_url, vendor, encryption_key)
                for proxy in (nginx, haproxy)
            }


@pytest.fixture(params=["nginx", "haproxy"])
def site(request: pytest.FixtureRequest, sites: dict[str, Site]) -> Site:
    """The nodes behind each proxy in turn. A test leaves them running."""
    return sites[request.param]
