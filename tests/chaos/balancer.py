"""The real nginx in front of the nodes."""

import shutil
import signal
import subprocess
from pathlib import Path

from processes import HOST, ChaosError, end, free_port, run, start, until

# As deploy/nginx.conf has it, where it matters here: a POST goes on to the next node, which is safe
# because equal bodies are one event.
CONFIGURATION = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    keepalive_requests 100000;
    client_max_body_size 1m;
    upstream nodes {{
{servers}
    }}
    server {{
        listen {host}:{port};
        location / {{
            proxy_pass http://nodes;
            proxy_set_header Host $host;
            proxy_next_upstream error timeout http_503 non_idempotent;
            proxy_next_upstream_tries 3;
            proxy_next_upstream_timeout 5s;
            proxy_connect_timeout 2s;
            proxy_read_timeout 15s;
        }}
    }}
}}
"""


class Balancer:
    """nginx, leading to ports. Raises ChaosError if it is not installed."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        if not shutil.which("nginx"):
            raise ChaosError("nginx is not installed")
        folder.mkdir()
        self.port = free_port()
        servers = "\n".join(f"        server {HOST}:{port} max_fails=0;" for port in ports)
        configuration = folder / "nginx.conf"
        values = {"folder": folder, "host": HOST, "port": self.port, "servers": servers}
        configuration.write_text(CONFIGURATION.format(**values))
        argv = ["nginx", "-p", str(folder), "-c", str(configuration)]
        run([*argv, "-t", "-q", "-g", f"error_log {folder}/error.log;"])
        self._process: subprocess.Popen[bytes] = start(argv, folder / "error.log")
        until((folder / "nginx.pid").exists, "nginx's start")

    def close(self) -> None:
        """Stop it."""
        end(self._process, signal.SIGTERM)
