"""Peers' packages: into a cache folder, never into the project."""

import hashlib
import os
import shutil
from pathlib import Path

from machine import Unavailable, run
from processes import PYTHON, ToolError

PEERS = Path(__file__).parent / "peers"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "receiver-bench"


def venv(peer: str) -> Path:
    """The `bin` of a virtual environment with a peer's requirements. Raises Unavailable."""
    requirements = PEERS / peer / "requirements.txt"
    folder = _folder(peer, requirements)
    if not (folder / "complete").exists():
        _installed([PYTHON, "-m", "venv", "--clear", str(folder)], peer)
        pip = [str(folder / "bin" / "pip"), "--disable-pip-version-check", "--quiet", "install"]
        _installed([*pip, "--requirement", str(requirements)], peer)
        (folder / "complete").touch()
    return folder / "bin"


def node_modules(peer: str) -> Path:
    """A folder with a peer's script and its packages. Raises Unavailable."""
    program("node")
    program("npm")
    folder = _folder(peer, PEERS / peer / "package.json")
    folder.mkdir(parents=True, exist_ok=True)
    for file in (PEERS / peer).iterdir():
        shutil.copy(file, folder)
    if not (folder / "complete").exists():
        install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
        _installed([*install, "--prefix", str(folder)], peer)
        (folder / "complete").touch()
    return folder


def program(name: str, package: str | None = None) -> str:
    """The path of a program. Raises Unavailable."""
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed: apt-get install {package or name}")
    return found


def _folder(peer: str, needs: Path) -> Path:
    return CACHE / f"{peer}-{hashlib.sha256(needs.read_bytes()).hexdigest()[:12]}"


def _installed(argv: list[str], peer: str) -> None:
    try:
        run(argv)
    except (ToolError, OSError) as error:
        raise Unavailable(f"{peer} could not be installed: {error}") from None
