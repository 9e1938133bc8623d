"""The real nginx in front of the nodes, with deploy/nginx.conf where there is one."""

import datetime as dt
import re
import shutil
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from processes import HOST, ROOT, ChaosError, end, free_port, run, start, until

DEPLOYED = ROOT / "deploy" / "nginx.conf"
OUTSIDE = "hooks.example.com"  # the host that takes callbacks

# The least of deploy/nginx.conf: a POST goes on to the next node, which is safe because equal
# bodies are one event, and two nodes that hang are through in ten seconds.
LEAST = """\
pid /run/nginx.pid;
error_log /var/log/nginx/error.log warn;
events { worker_connections 4096; }
http {
    access_log off;
    client_max_body_size 1m;
    upstream receivers {
        server receiver-1:8000 max_fails=0;
        keepalive 64;
        keepalive_timeout 60s;
    }
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_connect_timeout 1s;
    server {
        listen 80;
        server_name hooks.example.com;
        location / {
            proxy_pass http://receivers;
            proxy_next_upstream error timeout http_503 non_idempotent;
            proxy_next_upstream_tries 3;
            proxy_next_upstream_timeout 7s;
            proxy_read_timeout 4s;
            proxy_send_timeout 4s;
        }
    }
}
"""


class Balancer:
    """nginx, leading to ports. Raises ChaosError if it is not installed."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        if not shutil.which("nginx"):
            raise ChaosError("nginx is not installed")
        folder.mkdir()
        self.port = free_port()
        content = DEPLOYED.read_text() if DEPLOYED.exists() else LEAST
        file = folder / "nginx.conf"
        file.write_text(_moved(content, folder, self.port, ports))
        _certify(folder)
        argv = ["nginx", "-c", str(file), "-e", str(folder / "error.log"), "-g", "daemon off;"]
        run([*argv, "-t", "-q"])
        self._process: subprocess.Popen[bytes] = start(argv, folder / "error.log")
        until((folder / "nginx.pid").exists, "nginx's start")

    def close(self) -> None:
        """Stop it."""
        end(self._process)


def _moved(content: str, folder: Path, port: int, nodes: list[int]) -> str:
    """A configuration with our ports and paths instead of its own."""
    servers = "".join(rf"\g<1>{HOST}:{node}\g<2>" for node in nodes)
    content, found = re.subn(
        r"( *server )receiver-1:8000(.*\n)(?: *server receiver-.*\n)*", servers, content
    )
    if not found or "listen 80" not in content:
        raise ChaosError("nginx.conf has other receivers or ports than the harness knows")
    content = re.sub(r"listen 80\b", f"listen {HOST}:{port}", content)
    content = re.sub(r"listen 443\b", f"listen {HOST}:{free_port()}", content)
    content = re.sub(r"listen 8443\b", f"listen {HOST}:{free_port()}", content)
    content = re.sub(r"127\.0\.0\.1:8081\b", f"{HOST}:{free_port()}", content)
    for path in ("/etc/nginx/tls/", "/var/log/nginx/", "/run/"):
        content = content.replace(path, f"{folder}/")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    return content.replace("http {\n", f"http {{\n{temporary}", 1)


def _certify(folder: Path) -> None:
    """Make a certificate, which nginx wants to see although nobody here uses it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, OUTSIDE)])
    unsigned = x509.CertificateBuilder(name, name, key.public_key(), 1).not_valid_before(now)
    signed = unsigned.not_valid_after(now + dt.timedelta(days=1)).sign(key, hashes.SHA256())
    (folder / "tls.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
