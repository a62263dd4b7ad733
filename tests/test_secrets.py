"""No key is anywhere but where it has to be: whatever a server says or writes is searched for them.

A server in its own process is asked for what goes well and what does not, by an upstream that
repeats every key it is shown, and by clients that put theirs in the wrong place; its configuration
is then broken, and it is stopped. That the search finds keys is seen on what upstream was sent.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import text

from deltawire.errors import DeltawireError
from deltawire.server.config import Config, ConfigError, load
from deltawire.server.database import open_for_reading
from deltawire.server.keys import hash_key
from deltawire.testing import Answer, Failed
from deltawire.transports import AsyncioTransport, SyncTransport, TrioTransport
from postgres import PASSWORD, Postgres, postgres  # noqa: F401
from upstream import LIMIT, Headers, Reply, Upstream, error, stream

DELTAWIRE: Final = [sys.executable, "-m", "deltawire.server.cli"]

ACCOUNTS: Final = {
    "literal": "sk-literal-51f0c2/d7+a94e==",
    "env": "sk-env-7c1be0a8d2f94463",
    "file": "sk-file-e9a0715cc84b2f61",
    "relayed": "sk-relayed-0b6c4d2297fe1a35",
}
"""The keys of accounts; each serves models that begin with its name."""
HEADER: Final = "team-3f9d0c71a26be845"
QUERY: Final = "code-a81d5e24c09b6f37"
CLIENT: Final = "dw-client-4e07b91fd35ac286"
WRONG: Final = "dw-wrong-96c2f8ab10de7354"
SENT: Final = {*ACCOUNTS.values(), HEADER, QUERY}
"""What upstream is to have."""
SECRETS: Final = {*SENT, CLIENT, WRONG, PASSWORD}


def forms(secret: str) -> Iterator[str]:
    """How it might be written."""
    yield secret
    yield quote(secret, safe="")
    for written in (secret, f"Bearer {secret}", f":{secret}", f"deltawire:{secret}"):
        yield base64.b64encode(written.encode()).decode().rstrip("=")


def found_in(texts: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Which secrets, and where."""
    return {
        (secret, where)
        for where, said in texts
        for secret in SECRETS
        if any(form in said for form in forms(secret))
    }


def configuration(base_url: str, ledger: str, transport: str, form: str) -> str:
    def account(name: str, key: str) -> str:
        return f'[[upstreams.accounts]]\nname = "{name}"\n{key}\nmodels = ["{name}-*"]\n'

    def served(name: str, more: str) -> str:
        return (
            f'[[upstreams]]\nname = "{name}"\nbase_url = "{base_url}?code={QUERY}"\n'
            f'headers = {{ x-team = "{HEADER}" }}\n{more}\n'
        )

    return "".join(
        [
            f'[server]\nport = 0\ntransport = "{transport}"\nlog = "{form}"\n',
            f'[ledger]\nurl = "{ledger}"\n',
            f'[[clients]]\nname = "ann"\nkey_hash = "{hash_key(CLIENT)}"\n',
            served("chat", 'api = "chat"\nmodels = ["relayed-*"]'),
            account("relayed", f'key = "{ACCOUNTS["relayed"]}"'),
            '[[upstreams]]\nname = "nowhere"\nmodels = ["nowhere-*"]\n',
            f'base_url = "http://127.0.0.1:9/v1?code={QUERY}"\n',
            account("nowhere", f'key = "{ACCOUNTS["literal"]}"'),
            served("responses", ""),
            account("literal", f'key = "{ACCOUNTS["literal"]}"'),
            account("env", 'key_env = "DELTAWIRE_TEST_KEY"'),
            account("file", 'key_file = "key"'),
        ]
    )


def play(upstream: Upstream) -> None:
    """Answers for each account, in which all that is known of it is repeated."""
    for name, key in ACCOUNTS.items():
        said = f"Incorrect API key provided: {key} (Authorization: Bearer {key}; {HEADER})"
        told: Headers = (("x-request-id", f"up-{key}"), ("retry-after", "0"))
        failed = Answer("Some words.", end=Failed("server_error", said))
        upstream.play(stream(Answer("All is well.")), model=f"{name}-plain")
        upstream.play(stream(failed), model=f"{name}-midway")
        upstream.play(error(401, said, code=key, headers=told), model=f"{name}-refused")
        upstream.play(error(400, said, param=key, headers=told), model=f"{name}-wrong")
    relayed = ACCOUNTS["relayed"]
    chunk = {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": "All is well."}}],
    }  # fmt: skip
    end = {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    failure = {"error": {"message": f"Not with {relayed}", "type": "server_error", "code": relayed}}
    upstream.play(sse(chunk, end, "[DONE]"), model="relayed-plain")
    upstream.play(sse(chunk, failure), model="relayed-midway")


def sse(*events: object) -> Reply:
    return Reply(
        tuple(
            b"data: %b\n\n" % (each if isinstance(each, str) else json.dumps(each)).encode()
            for each in events
        )
    )


class Output:
    """What a process says on a pipe, as far as it has come."""

    def __init__(self, pipe: IO[str]) -> None:
        self.text = ""
        self._changed = threading.Condition()
        self._is_over = False
        self._thread = threading.Thread(target=self._read, args=(pipe,))
        self._thread.start()

    def _read(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                with self._changed:
                    self.text += line
                    self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def wait_for(self, said: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: said in self.text or self._is_over, LIMIT)
            assert said in self.text, self.text

    def join(self) -> str:
        self._thread.join(LIMIT)
        return self.text


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, Output, Output]]:
    """The process, its URL, and what it says on either pipe."""
    process = subprocess.Popen(
        [*DELTAWIRE, "serve"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = Output(process.stdout), Output(process.stderr)
    try:
        out.wait_for("/v1/chat/completions")
        yield process, out.text.split()[2].removesuffix("/v1/chat/completions"), out, err
    finally:
        process.kill()
        process.wait()
        out.join()
        err.join()


def command(folder: Path, *arguments: str) -> tuple[str, str]:
    done = subprocess.run(
        [*DELTAWIRE, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return f"deltawire {arguments[0]}", done.stdout + done.stderr


def ask_all(url: str) -> Iterator[tuple[str, str]]:
    """Every answer, its head included, by what was asked."""
    key = {"authorization": f"Bearer {CLIENT}"}
    with httpx.Client(base_url=url, timeout=LIMIT, trust_env=False) as client:

        def chat(model: str, headers: dict[str, str], **more: Any) -> tuple[str, str]:
            body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
            return model, shown(client.post("/v1/chat/completions", json=body, headers=headers))

        for name in ACCOUNTS:
            for kind in ("plain", "midway", "refused", "wrong"):
                for streamed in (True, False):
                    yield chat(f"{name}-{kind}", key, stream=streamed)
        yield chat("nowhere-plain", key)
        yield chat("env-plain", {"authorization": f"Bearer {WRONG}"})
        yield chat("env-plain", {"authorization": f"Basic {WRONG}"})
        yield chat("env-plain", {"api-key": WRONG})
        yield chat("env-plain", key, temperature="hot", seed=1)
        yield chat("unknown", key)
        for path in ("/v1/models", "/health", "/version", "/metrics", f"/v1/models?key={CLIENT}"):
            for headers in (key, {}, {"authorization": f"Bearer {WRONG}"}):
                yield path.partition("?")[0], shown(client.get(path, headers=headers))
        for body in (b"{", b'{"model": 1}', b"\xff", b"[]"):
            answer = client.post("/v1/chat/completions", content=body, headers=key)
            yield "bad input", shown(answer)


def shown(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.headers.raw!r} {answer.content!r} {answer.text}"


def objects(config: Config) -> Iterator[tuple[str, str]]:
    """What a program of one's own might print."""
    for each in (config, config.server, config.ledger, config.clients, config.limits):
        yield type(each).__name__, f"{each!r} {each}"
    for upstream in config.upstreams:
        yield "Upstream", f"{upstream!r} {upstream} {upstream.accounts!r}"
        for account in upstream.accounts:
            yield "Account", f"{account!r} {account}"
        for kind in (AsyncioTransport, TrioTransport):
            yield kind.__name__, f"{kind(**upstream.settings())!r}"
        with SyncTransport(**upstream.settings()) as transport:
            yield "SyncTransport", f"{transport!r} {transport}"
            for name in [account.name for account in upstream.accounts]:
                for kind_of_failure in ("midway", "refused", "wrong"):
                    yield "errors", raised(transport, f"{name}-{kind_of_failure}")


def raised(transport: SyncTransport, model: str) -> str:
    with pytest.raises(DeltawireError) as caught:
        transport.create({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    failure = caught.value
    return f"{failure!r} {failure} {vars(failure)} {''.join(traceback.format_exception(failure))}"


def written(url: str) -> Iterator[tuple[str, str]]:
    """All that is in the ledger."""
    engine = open_for_reading(url)
    with engine.connect() as connection:
        for table in ("deltawire_attempts", "deltawire_schema"):
            rows = connection.execute(text(f"SELECT * FROM {table}")).all()
            assert rows
            yield table, repr(rows)
    engine.dispose()


def broken(folder: Path, good: str) -> Iterator[tuple[str, str]]:
    """What is said of configurations that are wrong where a key is."""
    for wrong in (
        good.replace('key_env = "DELTAWIRE_TEST_KEY"', f'key_env = "{ACCOUNTS["env"]}"'),
        good.replace('key_file = "key"', f'key_file = "key"\nkey = "{ACCOUNTS["file"]}"'),
        good.replace('key_file = "key"', f'keys = "{ACCOUNTS["file"]}"'),
        good.replace(hash_key(CLIENT), CLIENT),
        good.replace('models = ["relayed-*"]', f'bearer = "{ACCOUNTS["relayed"]}"', 1),
        good.replace("[server]", f'[server]\nhost = ["{ACCOUNTS["literal"]}"]'),
        good.replace("postgresql://", "mysql://"),
        good + f'"{ACCOUNTS["literal"]}',
    ):
        assert wrong != good
        (folder / "wrong.toml").write_text(wrong)
        with pytest.raises(ConfigError) as caught:
            load(folder / "wrong.toml", os.environ)
        yield "ConfigError", f"{caught.value!r} {caught.value} {vars(caught.value)}"
        yield command(folder, "config", "check", "wrong.toml")


def test_no_key_is_said_of_a_configuration_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAWIRE_TEST_KEY", ACCOUNTS["env"])
    (tmp_path / "key").write_text(ACCOUNTS["file"])
    ledger = f"postgresql://deltawire:{quote(PASSWORD, safe='')}@127.0.0.1:9/postgres"
    good = configuration("http://127.0.0.1:9/v1", ledger, "asyncio", "human")
    said = list(broken(tmp_path, good))
    assert found_in(said) == set()
    assert {secret for secret, _ in found_in([("file", good)])} >= {HEADER, QUERY, PASSWORD}


# The form of the log is the same code on all of them.
@pytest.mark.parametrize(
    ("transport", "form"), [("asyncio", "human"), ("sync", "json"), ("trio", "human")]
)
@pytest.mark.usefixtures("no_proxy")
def test_no_key_is_said_or_written_anywhere(
    transport: str,
    form: str,
    postgres: Postgres,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = postgres.database()
    monkeypatch.setenv("DELTAWIRE_TEST_KEY", ACCOUNTS["env"])
    (tmp_path / "key").write_text(f"{ACCOUNTS['file']}\n")
    file = tmp_path / "deltawire.toml"
    said: list[tuple[str, str]] = []
    with Upstream() as upstream:
        play(upstream)
        good = configuration(upstream.base_url, url, transport, form)
        file.write_text(good)
        said.append(command(tmp_path, "config", "check", "deltawire.toml"))
        said += objects(load(file, os.environ))
        with serving(tmp_path) as (process, address, out, err):
            said += ask_all(address)
            file.write_text(good.replace('key_file = "key"', f'keys = "{ACCOUNTS["file"]}"'))
            process.send_signal(signal.SIGHUP)
            err.wait_for("the configuration stays as it was")
            process.terminate()
            assert process.wait(LIMIT) == 0
            said += [("stdout", out.join()), ("stderr", err.join())]
        got = [
            (request.path.partition("?")[0], f"{request.path} {request.headers}")
            for request in upstream.requests
        ]
    said.append(command(tmp_path, "usage", "--ledger", url, "--by", "account"))
    gone = url.replace(f":{postgres.port}/", ":9/")
    said.append(command(tmp_path, "usage", "--ledger", gone))
    said += written(url)

    assert found_in(said) == set()
    # The search is one: keys are found where they belong, and all that was said was searched.
    assert {secret for secret, _ in found_in(got)} == SENT
    everything = dict.fromkeys(where for where, _ in said)
    assert {"stdout", "stderr", "deltawire usage", "deltawire_attempts", "errors"} <= set(
        everything
    )
    texts = "".join(each for _, each in said)
    for marker in ("Incorrect API key provided: ***", "Not with ***", "All is well.", "ann"):
        assert marker in texts
