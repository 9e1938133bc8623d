"""Encryption of the secrets in the database.

Fernet authenticates what it encrypts but not where it is stored, so the row and column are
encrypted with the secret: a ciphertext that was swapped with another row's does not decrypt.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from receiver.errors import CredentialError


class SecretBox:
    """Encrypts secrets with the newest key, and decrypts them with any.

    encryption_keys -- Fernet keys, newest first; with none, both methods raise CredentialError.
    """

    def __init__(self, encryption_keys: Sequence[str]) -> None:
        self._keys = [Fernet(key) for key in encryption_keys]

    def encrypt(self, place: Sequence[str], secret: bytes) -> bytes:
        """Encrypt a secret for the place where it is stored."""
        content = json.dumps([*place, b64encode(secret).decode()])
        return self._fernet().encrypt(content.encode())

    def decrypt(self, place: Sequence[str], ciphertext: bytes) -> bytes:
        """Decrypt the secret stored at `place`. Raises CredentialError."""
        try:
            *encrypted_for, secret = json.loads(self._fernet().decrypt(ciphertext))
        except InvalidToken:
            raise CredentialError(
                "a secret was encrypted with a key that is not in RECEIVER_ENCRYPTION_KEYS:"
                " add that key again, or set the secret anew"
            ) from None
        if encrypted_for != list(place):
            raise CredentialError("an encrypted secret is in a row it was not encrypted for")
        return b64decode(secret)

    def is_current(self, ciphertext: bytes) -> bool:
        """Whether the newest key encrypted it."""
        try:
            self._keys[0].decrypt(ciphertext)
        except (InvalidToken, IndexError):
            return False
        return True

    def _fernet(self) -> MultiFernet:
        if not self._keys:
            raise CredentialError(
                "RECEIVER_ENCRYPTION_KEYS is needed to keep keys and secrets in the database"
            )
        return MultiFernet(self._keys)
