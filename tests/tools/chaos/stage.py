"""Everything a run takes place on: database, wires, nodes, balancer and sender."""

import json
import random
import secrets
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from balancer import Balancer
from cluster import DATABASE, Postgres
from disk import Disk
from http_client import Answer, Lost, Request
from plan import INSTANCES, Plan
from pooler import Pooler, pooler
from probes import Prober
from processes import HOST, PYTHON, ROOT, ToolError, run, until
from receivers import Node, Supervisor, environment
from sender import Sender
from vendor import Vendor
from wires import Wires

from receiver.openconnectors.shapes import BASE
from receiver.openconnectors.signatures import SignatureKey

INJECTED = Path(__file__).with_name("injected")
BOUNDARY = "chaos"
HOUR = 3600  # seconds
FERNET = "Y2hhb3MgY2hhb3MgY2hhb3MgY2hhb3MgY2hhb3MgISE="


@dataclass(frozen=True)
class Layout:
    """What is set up. kind -- `postgresql` or `sqlite`. tree -- whose code runs."""

    kind: str
    folder: Path
    seed: int
    nodes: int
    workers: int
    connections: int
    tree: Path = ROOT


@dataclass
class Stage:
    """A running receiver of several nodes; `close` ends all of it."""

    layout: Layout
    chance: random.Random = field(init=False)
    token: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        folder = self.layout.folder
        folder.mkdir()
        folder.chmod(0o755)
        self.chance = random.Random(self.layout.seed)
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.disk = Disk(folder / "disk", folder / "disk.log")
        self.disk.mount()
        self.wires = Wires(folder / "wires.log")
        self.primary: Postgres | None = None
        self.pooler: Pooler | None
        self.violations: list[str] = []
        self.retired: list[SignatureKey] = []
        self.ports: list[int] = []  # of PostgreSQL: this server's, and the next one's
        if self.layout.kind == "postgresql":
            self._make_servers()
        self.vendor = Vendor()
        self.clock = folder / "clock"
        self.skew()
        self.pooler = None if self.primary is None else pooler(folder)
        self._prepare()
        self.nodes = [self._node(number) for number in range(self.layout.nodes)]
        for node in self.nodes:
            node.start()
        lanes = [self.wires.lay(f"to-{node.name}", node.port) for node in self.nodes]
        self.balancer = Balancer(folder / "nginx", lanes)
        self.plan = Plan(random.Random(self.layout.seed), [node.name for node in self.nodes])
        ports = {"balancer": self.balancer.port, **{node.name: node.port for node in self.nodes}}
        self.sender = Sender(ports, dict(self.keys), self.layout.connections, self.layout.seed)
        for node in self.nodes:
            self.until_ready(node)
        self._turns = {what: self._rounds() for what in ("kill", "restart", "freeze")}
        self.supervisor = Supervisor(self.nodes)
        self.prober = Prober(self.nodes, folder)

    @property
    def server(self) -> Postgres:
        """The PostgreSQL server that takes writes. Raises ToolError if there is none."""
        if self.primary is None:
            raise ToolError("there is no PostgreSQL here")
        return self.primary

    @property
    def sqlite(self) -> Path:
        """SQLite's file, as the nodes see it."""
        return self.disk.folder / "receiver.db"

    def lanes(self, start: str) -> list[str]:
        """The wires whose name starts so."""
        return [lane for lane in self.wires.lanes if lane.startswith(start)]

    def command(self, *words: str) -> str:
        """Run one of the product's commands on the database; give what it prints."""
        env = environment(self.layout.tree, self._settings(self.ports[:1]))
        argv = [*self.disk.inside, PYTHON, "-m", "receiver", *words]
        return run(argv, env=env, cwd=self.layout.tree).strip()

    def ask(self, to: str, path: str) -> Answer:
        """GET something from a node, with a token. Raises Lost."""
        bearer = {"Authorization": f"Bearer {self.token}"}
        return self.sender.ask(to, Request("GET", path, bearer))

    def ask_vendor(
        self, to: str, instance: str, method: str, path: str, body: bytes = b""
    ) -> "Future[Answer]":
        """Ask the vendor through a node, as a client of the vendor's does."""
        headers = {"Authorization": f"Element {instance}, User {self.token}"}
        headers |= {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} if body else {}
        return self.sender.begin(to, Request(method, f"{BASE}{path}", headers, body))

    def is_ready(self, name: str) -> bool:
        """Whether a node says that it can commit."""
        with suppress(Lost):
            return self.ask(name, "/readyz").status == 200
        return False

    def until_ready(self, node: Node) -> float:
        """Wait until a node is ready; give the seconds. Raises ToolError."""
        return until(lambda: self.is_ready(node.name), f"{node.name}'s readiness")

    def next_node(self, what: str) -> Node:
        """Whose turn it is to be killed or restarted: all are, equally often."""
        return next(self._turns[what])

    def new_key(self, name: str) -> tuple[SignatureKey, Path]:
        """Make a signature key, and a file that holds it."""
        secret = secrets.token_hex(24)
        path = self.layout.folder / f"key-{name}"
        path.write_text(secret)
        return SignatureKey(name, secret.encode()), path

    def lead_to(self, server: Postgres) -> None:
        """Lead new connections to another server; the second lane of the first node stays."""
        for lane in self.lanes("db-"):
            if not lane.startswith("db-both"):
                self.wires.lead(lane, server.port)
        self.primary = server
        self.ports = [server.port, *(port for port in self.ports if port != server.port)]

    def skew(self) -> None:
        """Have the clock of the last node an hour ahead, or if it was, an hour behind."""
        ahead = not (self.clock.exists() and int(self.clock.read_text()) > 0)
        self.clock.write_text(str(-HOUR if ahead else HOUR))

    def close(self) -> None:
        """End everything."""
        self.prober.close()
        self.supervisor.close()
        for node in self.nodes:
            node.terminate()
        self.sender.close()
        self.balancer.close()
        if self.primary is not None:
            self.primary.stop("immediate")
        self.disk.close()
        self.vendor.shutdown()

    def _rounds(self) -> Iterator[Node]:
        while True:
            yield from self.chance.sample(self.nodes, len(self.nodes))

    def _make_servers(self) -> None:
        log = self.layout.folder / "postgresql.log"
        self.primary = Postgres(self.disk, "server-0", log)
        self.primary.make()
        self.ports = [self.primary.port, Postgres(self.disk, "unused", log).port]

    def _prepare(self) -> None:
        """Make the schema, an instance whose keys are in the database, and a token."""
        self.keys = {}
        for instance in INSTANCES:
            self.keys[instance], path = self.new_key(f"{instance}-0")
        self.command("db", "upgrade")
        self.command("instances", "add", INSTANCES[1], "--signature-key-file", str(path))
        (row,) = json.loads(self.command("keys", "list", INSTANCES[1], "--json"))["keys"]
        self.key_id = str(row["id"])
        self.add_vendor_secrets("set", INSTANCES[1])
        self.token = self.command("tokens", "create", "chaos", "--scope", "operate")

    def add_vendor_secrets(self, how: str, instance: str) -> None:
        """Let the vendor be asked for an instance. how -- `set`, or `add` for a new instance."""
        secret = self.layout.folder / "vendor-secret"
        secret.write_text("of no importance")
        files = [f"--{name}-file={secret}" for name in ("element-token", "user-secret")]
        self.command("instances", how, instance, *files)

    def _node(self, number: int) -> Node:
        settings = self._settings(self._database_ports(number))
        settings |= {"CHAOS_FAULTS": str(self.faults), "PYTHONPATH": str(INJECTED)}
        if self.primary and number == self.layout.nodes - 1:
            settings |= {"CHAOS_CLOCK": str(self.clock)}
        return Node(
            f"node-{number}",
            self.layout.tree,
            settings,
            self.layout.folder / f"node-{number}.log",
            self.layout.workers,
            self.disk.inside if self.layout.kind == "sqlite" else [],
        )

    def _database_ports(self, number: int) -> list[int]:
        """The lanes to the database: the first node knows both servers, the others are led.

        The second one goes through the pooler, if there is one.
        """
        if self.primary is None:
            return []
        if number == 0:
            return [self.wires.lay(f"db-both-{port}", port) for port in self.ports]
        lane = self.wires.lay(f"db-{number}", self.primary.port)
        if number != 1 or self.pooler is None:
            return [lane]
        self.pooler.lead(lane)
        return [self.pooler.port]

    def _settings(self, ports: list[int]) -> dict[str, str]:
        hosts = "&".join(f"host={HOST}:{port}" for port in ports)
        url = f"postgresql://postgres@/{DATABASE}?{hosts}"
        return {
            "HOME": str(self.layout.folder),
            "TMPDIR": str(self.layout.folder),
            "PYTHONUNBUFFERED": "1",
            "RECEIVER_DATABASE_URL": url if ports else f"sqlite:///{self.sqlite}",
            "RECEIVER_ENCRYPTION_KEYS": FERNET,
            "EVENT_NOTIFICATION_SIGNATURE_KEY": self.keys["default"].secret.decode(),
            "OPEN_CONNECTORS_URL": self.vendor.url,
            "RECEIVER_PUBLIC_URL": "https://hooks.example.com",
            "OPEN_CONNECTORS_RATE": "200",
            "RECEIVER_FORWARD_ALLOW": f"{HOST} localhost",
        }
