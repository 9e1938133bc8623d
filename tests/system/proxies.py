"""nginx and HAProxy, run with the files in deploy/; only names, ports and paths are replaced."""

import datetime as dt
import http.client
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import debian
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from nodes import DEADLINE, eventually
from processes import free_port

import receiver

DEPLOY = Path(receiver.__file__).parents[1] / "deploy"
OUTSIDE, INSIDE = "hooks.example.com", "receiver.example.internal"
Replacements = Sequence[tuple[str, str]]


@dataclass
class Proxy:
    """A running proxy; its ports, by what nginx.conf and haproxy.cfg have them for."""

    name: str
    plain: int
    outside: int
    inside: int
    log: Path
    certificate: Path

    def dial(self, port: int | None = None, *, host: str = OUTSIDE, peer: str = "127.0.0.1"):
        """A TLS connection (a plain one to the plain port), from an address of this machine."""
        port = self.outside if port is None else port
        address = (peer, 0)
        raw = socket.create_connection(("127.0.0.1", port), DEADLINE, source_address=address)
        if port == self.plain:
            return raw
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.check_hostname = False
        return context.wrap_socket(raw, server_hostname=host)

    def client(self, port: int | None = None, *, host: str = OUTSIDE, peer: str = "127.0.0.1"):
        """A kept-alive HTTP connection."""
        client = http.client.HTTPConnection(host, timeout=DEADLINE)
        client.sock = self.dial(port, host=host, peer=peer)
        client.auto_open = 0
        return client


def rendered(path: Path, replacements: Replacements) -> str:
    """A file of deploy/ with pieces replaced, each of which must be there."""
    content = path.read_text()
    for piece, instead in replacements:
        assert piece in content, f"{path.name} has no {piece!r}"
        content = content.replace(piece, instead)
    return content


def write_certificate(folder: Path) -> None:
    """Make tls.crt, tls.key and tls.pem, which holds both, for the host names of the files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, OUTSIDE)])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName(OUTSIDE), x509.DNSName(INSIDE), x509.IPAddress(ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "tls.crt").write_bytes(certificate)
    (folder / "tls.key").write_bytes(secret)
    (folder / "tls.pem").write_bytes(certificate + secret)


def nginx_file(folder: Path, nodes: Sequence[int], ports: Sequence[int]) -> str:
    """nginx.conf for these nodes; ports are those of the plain, outside and inside listeners."""
    plain, outside, inside = ports
    temporary = "".join(
        f"    {kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    servers = "".join(f"        server 127.0.0.1:{node} max_fails=0;\n" for node in nodes)
    replacements = [
        ("listen 80", f"listen 127.0.0.1:{plain}"),
        ("listen 443", f"listen 127.0.0.1:{outside}"),
        ("listen 8443", f"listen 127.0.0.1:{inside}"),
        ("127.0.0.1:8081", f"127.0.0.1:{free_port()}"),
        ("".join(f"        server receiver-{n}:8000 max_fails=0;\n" for n in (1, 2)), servers),
        ("/etc/nginx/tls/", f"{folder}/"),
        ("/var/log/nginx/", f"{folder}/"),
        ("/run/", f"{folder}/"),
        ("http {\n", f"http {{\n{temporary}"),
    ]
    # nginx's own user could not read pytest's folder; without rights, nginx has no other user.
    user = "user root;\n" if folder.owner() == "root" else ""
    return user + rendered(DEPLOY / "nginx.conf", replacements)


def haproxy_file(folder: Path, nodes: Sequence[int], ports: Sequence[int]) -> str:
    """haproxy.cfg for these nodes; ports as for nginx."""
    plain, outside, inside = ports
    replacements = [
        ("bind :80\n", f"bind 127.0.0.1:{plain}\n"),
        ("bind :443 ", f"bind 127.0.0.1:{outside} "),
        ("bind :8443 ", f"bind 127.0.0.1:{inside} "),
        ("receiver-1:8000", f"127.0.0.1:{nodes[0]}"),
        ("receiver-2:8000", f"127.0.0.1:{nodes[1]}"),
        ("/etc/haproxy/", f"{folder}/"),
    ]
    return rendered(DEPLOY / "haproxy.cfg", replacements)


FILES: dict[str, Callable[[Path, Sequence[int], Sequence[int]], str]] = {
    "nginx": nginx_file,
    "haproxy": haproxy_file,
}


@contextmanager
def running_proxy(
    name: str, folder: Path, nodes: Sequence[int], replacements: Replacements = ()
) -> Iterator[Proxy]:
    """A proxy in front of two nodes, given by their ports, with its file changed once more."""
    program = debian.program(name)
    folder.mkdir(exist_ok=True)
    write_certificate(folder)
    ports = [free_port() for _ in range(3)]
    file = folder / f"{name}.conf"
    file.write_text(FILES[name](folder, nodes, ports))
    file.write_text(rendered(file, replacements))
    words = {
        "nginx": ["-c", str(file), "-e", str(folder / "error.log"), "-g", "daemon off;"],
        "haproxy": ["-db", "-f", str(file)],
    }
    # nginx writes its own; HAProxy's is its output.
    output, log = folder / "output", folder / ("access.log" if name == "nginx" else "output")
    with output.open("wb") as written:
        process = subprocess.Popen(
            [program, *words[name]], stdout=written, stderr=written, env=debian.environment()
        )
    try:
        proxy = Proxy(name, *ports, log, folder / "tls.crt")
        eventually(lambda: _listens(proxy, process), f"{name} listening")
        yield proxy
    finally:
        process.terminate()
        process.wait(DEADLINE)


def _listens(proxy: Proxy, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        logs = (proxy.log.parent / "output", proxy.log.parent / "error.log")
        raise AssertionError("".join(log.read_text() for log in logs if log.exists()))
    try:
        proxy.dial().close()
    except OSError:
        return False
    return True
