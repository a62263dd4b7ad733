"""The laws of client keys: whose a key is, and that nothing shows it."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltawire.server.keys import Client, ClientKeys, hash_key, new_key

# Among them lone surrogates, which a header that is no UTF-8 is decoded to.
ANY_TEXT = st.text(st.characters(exclude_categories=()))
KEYS = st.lists(ANY_TEXT, max_size=8, unique=True)


def clients_with(keys: list[str]) -> list[Client]:
    return [
        Client(name=f"client-{place}", key_hash=hash_key(key)) for place, key in enumerate(keys)
    ]


@given(KEYS)
def test_a_key_is_its_clients_wherever_that_one_stands(keys: list[str]) -> None:
    clients = clients_with(keys)
    known = ClientKeys(clients)
    assert [known.find(key) for key in keys] == clients
    assert len(known) == len(keys)


@given(KEYS, ANY_TEXT)
def test_any_other_key_is_nobodys(keys: list[str], presented: str) -> None:
    found = ClientKeys(clients_with(keys)).find(presented)
    assert (found is not None) == (presented in keys)


@given(KEYS)
def test_no_key_and_a_hash_are_nobodys_key(keys: list[str]) -> None:
    clients = clients_with(keys)
    assert ClientKeys(clients).find(None) is None
    assert all(ClientKeys(clients).find(client.key_hash) is None for client in clients)


def test_a_hash_is_what_sha256sum_says() -> None:
    assert hash_key("dw-ä") == "sha256:" + hashlib.sha256("dw-ä".encode()).hexdigest()


def test_new_keys_differ_and_can_stand_in_a_header() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"dw-[A-Za-z0-9_-]{43}", key) for key in keys)


def test_no_repr_shows_a_hash() -> None:
    client = Client(name="ann", key_hash=hash_key("dw-1"), models=("gpt-5*",))
    assert repr(client) == "Client(name='ann', models=('gpt-5*',))"
    assert client.key_hash not in repr(ClientKeys([client]))


def test_a_client_may_use_what_its_patterns_match_and_without_any_all() -> None:
    allowed = Client(name="ann", key_hash=hash_key("1"), models=("fast", "gpt-5*"))
    names = ["fast", "gpt-5", "gpt-5-mini", "faster", "GPT-5", "", "grok-4"]
    assert [name for name in names if allowed.may_use(name)] == ["fast", "gpt-5", "gpt-5-mini"]
    assert all(map(Client(name="bob", key_hash=hash_key("2")).may_use, names))


@pytest.mark.parametrize("key_hash", ["dw-1", "sha256:xyz"])
def test_what_is_no_hash_is_said_at_once(key_hash: str) -> None:
    with pytest.raises(ValueError, match="hex"):
        ClientKeys([Client(name="ann", key_hash=key_hash)])
