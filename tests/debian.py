"""Programs that only Debian has: as installed, or unpacked into .venv/debian, which needs no root.

`python tests/debian.py`, from `make test`, fetches what is missing. Where it cannot, it says so,
and the tests that need a program skip by its name (and fail in CI).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FETCHED = Path(sys.prefix) / "debian"
PACKAGES = {  # with the libraries that not every machine has
    "nginx": ["nginx", "libssl3"],
    "haproxy": ["haproxy", "liblua5.3-0", "libopentracing1", "libopentracing-c-wrapper0"],
    "promtool": ["prometheus"],
    "systemd-analyze": [
        *("systemd", "libsystemd-shared", "libapparmor1", "libip4tc2", "libkmod2", "libseccomp2")
    ],
}


def program(name: str) -> str:
    """The path of a program; skips the test, or fails it in CI, if there is none."""
    found = _found(name)
    if found is None:
        missing = f"{name} is missing: `make test` fetches it where Debian's archive can be reached"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return found


def environment() -> dict[str, str]:
    """This process's environment, in which a fetched program finds its libraries."""
    libraries = (*FETCHED.rglob("lib/*-linux-gnu*"), *FETCHED.glob("usr/lib/*-linux-gnu*/systemd"))
    folders = [str(folder) for folder in libraries]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    path = ":".join([*folders, *([inherited] if inherited else [])])
    return {**os.environ, **({"LD_LIBRARY_PATH": path} if path else {})}


def fetch() -> None:
    """Fetch what is missing."""
    wanted = [name for name in PACKAGES if _found(name) is None]
    if not wanted:
        return
    packages = [package for name in wanted for package in PACKAGES[name]]
    try:
        if not _unpacked(packages):
            root = [] if os.geteuid() == 0 else ["sudo", "-n"]
            subprocess.run([*root, "apt-get", "update", "-qq"], check=False)
            _unpacked(packages)
    except OSError as error:
        sys.stderr.write(f"{error.filename} is not installed: is this no Debian?\n")
    for name in wanted:
        if _found(name) is None:
            sys.stderr.write(f"\n*** {name} could not be fetched: its tests are SKIPPED ***\n\n")


def _found(name: str) -> str | None:
    folders = ["/usr/sbin", "/usr/bin", str(FETCHED / "usr/sbin"), str(FETCHED / "usr/bin")]
    return shutil.which(name) or shutil.which(name, path=":".join(folders))


def _unpacked(packages: list[str]) -> bool:
    # apt drops its rights for a download, and then must be able to write where it puts it.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        download = ["apt-get", "download", "-qq", *packages]
        if subprocess.run(download, cwd=folder, check=False).returncode:
            return False
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", str(package), str(FETCHED)], check=True)
    return True


if __name__ == "__main__":
    fetch()
