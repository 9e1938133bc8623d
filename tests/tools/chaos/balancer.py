"""The real nginx in front of the nodes, with deploy/nginx.conf."""

from pathlib import Path

import debian
from processes import ToolError, end, free_port, start, until
from proxies import nginx_file, write_certificate


class Balancer:
    """nginx, leading to ports. Raises ToolError if it is not there."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        program = debian.find("nginx")
        if program is None:
            raise ToolError("nginx is not installed")
        folder.mkdir()
        write_certificate(folder)
        self.port = free_port()
        file, log = folder / "nginx.conf", folder / "error.log"
        file.write_text(nginx_file(folder, ports, [self.port, free_port(), free_port()]))
        argv = [program, "-c", str(file), "-e", str(log), "-g", "daemon off;"]
        self._process = start(argv, log, env=debian.environment())
        until((folder / "nginx.pid").exists, "nginx's start")

    def close(self) -> None:
        """Stop it."""
        end(self._process)
