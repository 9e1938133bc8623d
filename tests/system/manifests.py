"""What container, Kubernetes and systemd files say of the receiver, held against the receiver."""

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from receiver import settings
from receiver.cli.commands import receiver
from receiver.server import OPTIONS

BIN = Path(sys.executable).parent
GRACE = int(OPTIONS["graceful_timeout"])  # seconds
KEY = "EVENT_NOTIFICATION_SIGNATURE_KEY"
SETTINGS = {*settings._VARIABLES, KEY, f"{KEY}_PREVIOUS"}


def checked(program: str, *words: object) -> None:
    """Run a linter that PyPI has; what it says is the failure."""
    ran = subprocess.run(
        [str(BIN / program), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def is_command(words: list[str]) -> bool:
    """Whether `receiver` knows these words."""
    return CliRunner().invoke(receiver, [*words, "--help"]).exit_code == 0


def are_settings(names: dict[str, str]) -> bool:
    """Whether the receiver reads all these variables; secrets only from files."""
    secret = {KEY, f"{KEY}_PREVIOUS", "RECEIVER_DATABASE_URL", "RECEIVER_ENCRYPTION_KEYS"}
    return {name.removesuffix("_FILE") for name in names} <= SETTINGS and not secret & set(names)
