"""Sealing secrets for the database.

Fernet authenticates what it encrypts but not where it lies, so a sealed secret carries its place:
a row whose ciphertext was swapped with another's does not open.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from receiver.errors import CredentialError


class Vault:
    """Seals secrets with the newest encryption key, and opens them with any.

    encryption_keys -- Fernet keys, newest first; with none, sealing and opening raise
    CredentialError.
    """

    def __init__(self, encryption_keys: Sequence[str]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in encryption_keys] or [_NO_KEY])
        self._usable = bool(encryption_keys)

    def seal(self, place: Sequence[str], secret: bytes) -> bytes:
        """Encrypt a secret together with the place it is kept at."""
        self._check()
        content = json.dumps([*place, b64encode(secret).decode()])
        return self._fernet.encrypt(content.encode())

    def open(self, place: Sequence[str], sealed: bytes) -> bytes:
        """Decrypt what was sealed at `place`. Raises CredentialError."""
        self._check()
        try:
            *sealed_at, secret = json.loads(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise CredentialError("a secret was sealed with a key that is not given") from None
        if sealed_at != list(place):
            raise CredentialError("a sealed secret lies in a row it was not sealed for")
        return b64decode(secret)

    def _check(self) -> None:
        if not self._usable:
            raise CredentialError(
                "RECEIVER_ENCRYPTION_KEYS is needed to keep keys and secrets in the database"
            )


_NO_KEY = Fernet(Fernet.generate_key())
