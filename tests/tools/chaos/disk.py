"""A disk of the run's own, which can be filled up: a tmpfs that only a mount namespace sees."""

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from processes import ToolError, end, run, start

LARGE_MB = 1024  # a limit; only what is used takes memory


class Disk:
    """A file system for a database, at `folder`; without the right to mount, an ordinary folder.

    inside -- words to put before a command, so that it sees this disk.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder = folder
        self.inside: list[str] = []
        self._log = log
        self._holder: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        folder.chmod(0o755)

    @property
    def own(self) -> bool:
        """Whether it is a file system of its own, so that it can be filled."""
        return self._holder is not None

    def mount(self) -> None:
        """Have a file system of its own, if this machine lets us."""
        if not shutil.which("unshare") or not shutil.which("nsenter"):
            return
        script = (
            f"mount -t tmpfs -o size={LARGE_MB}m,mode=755 chaos {self.folder}"
            " && echo mounted && exec cat"
        )
        # `cat` ends with this process, and the namespace with it.
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        holder = start(argv, self._log, **pipes)
        if holder.stdout is None or holder.stdout.readline() != b"mounted\n":
            end(holder)
            return
        self._holder = holder
        self.inside = ["nsenter", "--target", str(holder.pid), "--mount", "--"]

    def outside(self, path: Path) -> Path:
        """The path under which this process sees a file of the disk."""
        return path if self._holder is None else Path(f"/proc/{self._holder.pid}/root{path}")

    def fill(self) -> None:
        """Leave no room for anything more."""
        for _ in range(20):
            used = run([*self.inside, "df", "--output=used", "-k", str(self.folder)])
            with suppress(ToolError):  # it has grown meanwhile
                self._resize(f"{used.split()[-1]}k")
                return
        raise ToolError("the disk grew faster than it could be measured")

    def free(self) -> None:
        """Give the room back."""
        self._resize(f"{LARGE_MB}m")

    def close(self) -> None:
        """Unmount; what was on it is gone."""
        if self._holder is not None:
            end(self._holder)
            self._holder, self.inside = None, []

    def _resize(self, size: str) -> None:
        if self._holder is None:
            raise ToolError("this disk is not our own")
        run([*self.inside, "mount", "-o", f"remount,size={size}", str(self.folder)])
