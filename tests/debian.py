"""Programs that only Debian has: as installed, or unpacked into .venv/debian, which needs no root.

`python tests/debian.py`, from `make test`, fetches what is missing. Where it cannot, it says so,
and the tests that need a program skip by its name (and fail in CI).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

FETCHED = Path(sys.prefix) / "debian"
PACKAGES = {  # with the libraries that not every machine has
    "nginx": ["nginx", "libssl3"],
    "haproxy": ["haproxy", "liblua5.3-0", "libopentracing1", "libopentracing-c-wrapper0"],
    "promtool": ["prometheus"],
    "pgbouncer": ["pgbouncer", "libc-ares2", "libevent-2.1-7"],
    "systemd-analyze": [
        *("systemd", "libsystemd-shared", "libapparmor1", "libip4tc2", "libkmod2", "libseccomp2")
    ],
}
VERSIONS = {  # what a program is asked for its version
    "nginx": "-v",
    "haproxy": "-v",
    **dict.fromkeys(("promtool", "systemd-analyze", "chromium", "strace", "curl"), "--version"),
    "/usr/lib/postgresql/15/bin/postgres": "--version",
}


def program(name: str) -> str:
    """The path of a program; skips the test, or fails it in CI, if there is none."""
    found = find(name)
    if found is None:
        missing = f"{name} is missing"
        if name in PACKAGES:
            missing += ": `make test` fetches it where Debian's archive can be reached"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return found


def environment() -> dict[str, str]:
    """This process's environment, in which a fetched program finds its libraries."""
    libraries = (*FETCHED.rglob("lib/*-linux-gnu*"), *FETCHED.glob("usr/lib/*-linux-gnu*/systemd"))
    folders = [str(folder) for folder in libraries]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    path = ":".join([*folders, *([inherited] if inherited else [])])
    return {**os.environ, **({"LD_LIBRARY_PATH": path} if path else {})}


def can_mount() -> list[str]:
    """A command that runs another in a mount namespace of its own; skips the test without one."""
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*unshare, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        missing = "this machine lets nobody make a mount namespace"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return unshare


def versions() -> Iterator[str]:
    """What each program says of its version, if it is there."""
    for name, word in VERSIONS.items():
        said = "none"
        if path := find(name):
            command = [path, word]
            ran = subprocess.run(
                command, env=environment(), capture_output=True, text=True, check=False
            )
            said = next(iter((ran.stdout + ran.stderr).splitlines()), "nothing")
        yield f"{name}: {said}"


def fetch() -> None:
    """Fetch what is missing, with the machine's list of packages; if that is old or none, anew."""
    wanted = [name for name in PACKAGES if find(name) is None]
    if not wanted:
        return
    packages = [package for name in wanted for package in PACKAGES[name]]
    try:
        with tempfile.TemporaryDirectory() as folder:
            # apt drops its rights, and then must be able to write where it puts things.
            Path(folder).chmod(0o777)
            if not _unpacked(packages, Path(folder)):
                Path(folder, "lists/partial").mkdir(parents=True)
                own = ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}"]
                subprocess.run(["apt-get", "update", "-qq", *own], check=False)
                _unpacked(packages, Path(folder), *own)
    except OSError as error:
        sys.stderr.write(f"{error.filename} is not installed: is this no Debian?\n")
    for name in wanted:
        if find(name) is None:
            sys.stderr.write(f"\n*** {name} could not be fetched: its tests are SKIPPED ***\n\n")


def find(name: str) -> str | None:
    """The path of a program; None if there is none."""
    folders = ["/usr/sbin", "/usr/bin", str(FETCHED / "usr/sbin"), str(FETCHED / "usr/bin")]
    return shutil.which(name) or shutil.which(name, path=":".join(folders))


def _unpacked(packages: list[str], folder: Path, *options: str) -> bool:
    download = ["apt-get", "download", "-qq", *options, *packages]
    if subprocess.run(download, cwd=folder, check=False).returncode:
        return False
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(FETCHED)], check=True)
    return True


if __name__ == "__main__":
    fetch()
