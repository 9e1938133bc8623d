"""Keys of an instance: few at once, since each refused delivery costs an HMAC for each."""

import pytest

from receiver.errors import CredentialError
from receiver.instances import keys as signature_keys
from receiver.instances.encryption import SecretBox


def test_a_fourth_active_key_is_refused_until_one_is_retired(any_receiver):
    database = any_receiver.services.database
    secret_box = SecretBox(["Zm9yIHRlc3RzIG9ubHksIHRoaXJ0eS10d28gYnl0ZXM="])

    def add(number: int) -> str:
        with database.write() as session:
            secret = f"the signature key number {number}".encode()
            return signature_keys.add_key(session, secret_box, "default", secret, number)

    ids = [add(number) for number in range(3)]
    with pytest.raises(CredentialError, match="3 keys already"):
        add(3)
    with database.write() as session:
        signature_keys.retire_key(session, ids[0], "default", 4)
    assert add(3)
