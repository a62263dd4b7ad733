"""The servers that are measured, each as a user starts it, a process of its own.

deltawire translates; nginx and Starlette with httpx pass the Responses stream through as it is;
LiteLLM's proxy translates as deltawire does.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import peers
from benchmarks.processes import Failed, Program, environment

CHAT: Final = "/v1/chat/completions"
RESPONSES: Final = "/v1/responses"
Start = Callable[[int, Path, list[str]], tuple[Program, int | None]]
# Seconds until a server listens; LiteLLM's proxy imports for long.
PATIENCE: Final = 120.0


@dataclass(frozen=True)
class Server:
    """One that listens; the CPU and the memory are those of `pid` and all below it."""

    name: str
    path: str
    port: int
    pid: int
    is_peer: bool
    # The last that it said.
    complaint: Callable[[], str] = str


@dataclass(frozen=True)
class Contender:
    """What is measured. `start` is given the port of upstream, a folder and the models.

    It gives the process and its port; None: the process will say it.
    """

    name: str
    path: str
    start: Start
    is_peer: bool = False

    def listening(self, program: Program, port: int | None) -> Server:
        """Wait until it listens. Raises Failed if it does not."""
        if port is None:
            port = int(program.read().split("/v1/")[0].rpartition(":")[2])
        _await(program, port)
        return Server(self.name, self.path, port, program.pid, self.is_peer, program.complaint)


def _await(program: Program, port: int) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if not program.is_running():
            break
        time.sleep(0.1)
    raise Failed(f"does not start: {program.complaint()}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _deltawire(
    transport: str, api: str = "responses", main: tuple[str, ...] = ("-m", "deltawire.server.cli")
) -> Start:
    def start(upstream: int, folder: Path, models: list[str]) -> tuple[Program, int | None]:
        file = folder / "deltawire.toml"
        file.write_text(
            f"""
            server = {{ port = 0, transport = "{transport}", log = "none" }}
            limits = {{ connections = 10000 }}
            ledger = {{ url = "" }}
            [[upstreams]]
            name = "bench"
            base_url = "http://127.0.0.1:{upstream}/v1"
            api = "{api}"
            accounts = [{{ name = "bench-1", key = "sk-bench" }}]
            """
        )
        command = [sys.executable, *main, "serve", "--config", str(file)]
        return Program(command, folder / "log"), None

    return start


def _nginx(upstream: int, folder: Path, models: list[str]) -> tuple[Program, int | None]:
    port, file = _free_port(), folder / "nginx.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in kinds)
    file.write_text(
        f"""
        daemon off; master_process off; worker_processes 1;
        pid {folder / "pid"}; error_log {folder / "log"};
        worker_rlimit_nofile 16384;
        events {{ worker_connections 8192; }}
        http {{
            access_log off; {paths}
            upstream bench {{ server 127.0.0.1:{upstream}; keepalive 256; }}
            server {{
                listen 127.0.0.1:{port} backlog=1024;
                location / {{
                    proxy_pass http://bench; proxy_buffering off; proxy_read_timeout 600s;
                    proxy_http_version 1.1; proxy_set_header Connection "";
                }}
            }}
        }}
        """
    )
    return Program([peers.nginx(), "-c", str(file)], folder / "log"), port


def _starlette(upstream: int, folder: Path, models: list[str]) -> tuple[Program, int | None]:
    port = _free_port()
    python = str(peers.program("starlette"))
    here = str(Path(__file__).parent)
    command = [python, "-m", "uvicorn", "starlette_app:app", "--app-dir", here]
    command += ["--port", str(port), "--log-level", "warning", "--no-access-log"]
    environ = environment(UPSTREAM=f"http://127.0.0.1:{upstream}")
    return Program(command, folder / "log", environ=environ), port


def _litellm(upstream: int, folder: Path, models: list[str]) -> tuple[Program, int | None]:
    port, file = _free_port(), folder / "config.yaml"
    base = f"http://127.0.0.1:{upstream}/v1"
    listed = [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"openai/responses/{model}",
                "api_base": base,
                "api_key": "sk-bench",
            },
        }
        for model in models
    ]
    # JSON is YAML.
    # Nobody but this machine reaches it, and it need not check a key.
    general = {"dangerously_permit_weak_or_unset_master_key": True}
    file.write_text(json.dumps({"model_list": listed, "general_settings": general}))
    command = [str(peers.program("litellm", "litellm")), "--config", str(file)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    # It takes a word said a hundred times for a model gone mad.
    quiet["REPEATED_STREAMING_CHUNK_LIMIT"] = "1000000"
    # What it says on standard output nobody reads.
    shell = ["sh", "-c", 'exec "$@" >/dev/null', "sh", *command]
    return Program(shell, folder / "log", environ=environment(**quiet), cwd=folder), port


# What is None there cannot be imported.
_WITHOUT_UVLOOP: Final = (
    "import sys; sys.modules['uvloop'] = None; from deltawire.server.cli import main; main()"
)


# On uvloop, where that is installed.
ASYNCIO: Final = Contender("deltawire, asyncio", CHAT, _deltawire("asyncio"))
PLAIN: Final = Contender(
    "deltawire, asyncio without uvloop",
    CHAT,
    _deltawire("asyncio", main=("-c", _WITHOUT_UVLOOP)),
)
TRIO: Final = Contender("deltawire, trio", CHAT, _deltawire("trio"))
SYNC: Final = Contender("deltawire, sync", CHAT, _deltawire("sync"))
RELAY: Final = Contender("deltawire, asyncio, chat as it is", CHAT, _deltawire("asyncio", "chat"))
NGINX: Final = Contender("nginx, as it is", RESPONSES, _nginx)
STARLETTE: Final = Contender("Starlette + httpx, as it is", RESPONSES, _starlette, is_peer=True)
LITELLM: Final = Contender("LiteLLM's proxy", CHAT, _litellm, is_peer=True)


@contextlib.contextmanager
def started(
    contenders: list[Contender], upstream: int, folder: Path, models: list[str]
) -> Iterator[tuple[dict[str, Server], dict[str, str]]]:
    """Those that run, by name, and why the others do not.

    models: those that they will be asked for; LiteLLM wants a list.
    """
    programs: list[tuple[Contender, Program, int | None]] = []
    running: dict[str, Server] = {}
    absent: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for contender in contenders:
            home = folder / re.sub(r"\W+", "-", contender.name)
            home.mkdir(exist_ok=True)
            try:
                program, port = contender.start(upstream, home, models)
            except peers.Missing as why:
                absent[contender.name] = str(why)
            else:
                programs.append((contender, stack.enter_context(program), port))
        for contender, program, port in programs:
            try:
                running[contender.name] = contender.listening(program, port)
            except Failed as why:
                if not contender.is_peer:
                    raise
                absent[contender.name] = f"failed: {why}"
        yield running, absent
