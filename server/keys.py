"""Client keys: who may ask the server, and for which models.

What may live here: making a key, its hash, finding whose it is. What may not: the header it comes
in, and what is answered to a wrong one. Callers: the configuration, which reads the clients; the
server, which asks for each request.

A key is 32 random bytes, so that one round of SHA-256 is enough to keep it: a slow hash (bcrypt,
argon2) is for passwords, of which an attacker can guess the likely ones first. Here every one of
2**256 is as likely as any other, and a slow hash would only add its tenth of a second, and a way
to keep the server busy, to each request.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Final

from msgspec import Meta

_ALGORITHM: Final = "sha256:"

Name = Annotated[str, Meta(min_length=1, description="a name")]
KeyHash = Annotated[
    str,
    Meta(
        pattern=rf"\A{_ALGORITHM}[0-9a-f]{{64}}\Z",
        description=f'the hash of a key, "{_ALGORITHM}" and 64 hexadecimal digits in lower case',
    ),
]
"""What is kept of a key."""


def new_key() -> str:
    """A key for a client, to be shown once: `dw-` and 32 random bytes, 46 characters in all."""
    return f"dw-{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """What is kept of a key: `sha256:` and 64 hexadecimal digits."""
    return _ALGORITHM + _digest(key).hex()


def _digest(key: str) -> bytes:
    # What a header holds need not be Unicode; it is then simply no one's key.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, kw_only=True)
class Client:
    """Somebody who may ask.

    name: what logs and metrics call them.
    key_hash: `hash_key` of their key.
    models: patterns (`gpt-5*`) of the models they may use, as they ask for them, so that an alias
        can be allowed and what it stands for not; none: all.
    """

    name: Name
    key_hash: KeyHash = field(repr=False)
    models: tuple[str, ...] = ()

    def may_use(self, model: str) -> bool:
        """Whether they may ask for the model of that name."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)


class ClientKeys:
    """The keys of all clients. Without a client, `len` is 0, and no key is the right one.

    Raises ValueError for a `key_hash` that is none.
    """

    def __init__(self, clients: Iterable[Client]) -> None:
        self._clients = [
            (bytes.fromhex(client.key_hash.removeprefix(_ALGORITHM)), client) for client in clients
        ]

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, presented: str | None) -> Client | None:
        """Whose key that is; None for nobody's, and for none.

        It takes as long for the first client's key as for the last one's, or for nobody's.
        """
        if presented is None:
            return None
        digest = _digest(presented)
        found = None
        for known, client in self._clients:
            if hmac.compare_digest(known, digest):
                found = client
        return found
