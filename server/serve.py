"""`deltawire serve`: a configuration, its ledger, and the driver that it names, until a signal.

SIGTERM and SIGINT end it; SIGHUP has the configuration read again.

Each driver is imported when it is chosen, because each needs packages of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.util
import logging
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from deltawire.errors import InvalidSetting
from deltawire.server.access import written
from deltawire.server.config import Config, ConfigError, load, quick
from deltawire.server.descriptors import raise_limit
from deltawire.server.ledger import Ledger
from deltawire.server.service import Service
from deltawire.server.workers import Worker, look_after
from deltawire.transports.settings import Transport

T = TypeVar("T", bound=Transport)

_FINISHED: Final = 0
_FAILED: Final = 1
_WRONG_USAGE: Final = 2

# Objects more than there were, of those that could be in a cycle; CPython has 700.
_COLLECT_AFTER: Final = 10_000
_ENDS: Final = (signal.SIGTERM, signal.SIGINT)
# Windows has none.
_RELOADS: Final = tuple(filter(None, [getattr(signal, "SIGHUP", None)]))

_log: Final = logging.getLogger("deltawire.server")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `deltawire serve`, for `run`."""
    parser.add_argument(
        "--config", metavar="FILE", help="a configuration (default: deltawire.toml)"
    )
    parser.add_argument("--upstream", metavar="URL", help="instead: the one upstream there is")
    parser.add_argument("--host", default="127.0.0.1", help="with --upstream (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8080, help="with --upstream (default: 8080; 0: any)"
    )
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="with --upstream: the variable with its key (default: OPENAI_API_KEY, if it is set)",
    )
    parser.add_argument(
        "--public", action="store_true", help="with --upstream: listen beyond this machine"
    )
    parser.add_argument(
        "--transport", choices=["asyncio", "sync", "trio"], help="(default: asyncio, or the file's)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that share the port (default: 1)"
    )
    # What the process that looks after the workers tells one of them.
    parser.add_argument("--as-worker", type=Worker.parse, help=argparse.SUPPRESS)
    parser.add_argument(
        "--no-ledger", action="store_true", help="write down no attempts, whatever the file says"
    )


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Exit status: 1 if it cannot listen, 2 for a wrong setting."""
    try:
        return _serve(options)
    except (ConfigError, InvalidSetting) as error:
        print(f"deltawire: {error}", file=sys.stderr)
        return _WRONG_USAGE
    except OSError as error:
        print(f"deltawire: {error.strerror or error}", file=sys.stderr)
        return _FAILED


def _config(options: argparse.Namespace) -> Config:
    if options.upstream is not None:
        config = quick(
            options.upstream,
            environ=os.environ,
            host=options.host,
            port=options.port,
            public=options.public,
            api_key_env=options.api_key_env,
        )
    else:
        config = load(options.config or "deltawire.toml", os.environ)
    changed: dict[str, Any] = {}
    if options.transport is not None:
        changed["transport"] = options.transport
    if options.workers is not None:
        changed["workers"] = options.workers
    if options.as_worker is not None:
        changed["port"] = options.as_worker.port
    config = replace(config, server=replace(config.server, **changed))
    if config.server.workers < 1:
        raise InvalidSetting("server.workers", f"{config.server.workers}: expected 1 or more")
    if options.no_ledger:
        config = replace(config, ledger=replace(config.ledger, url=""))
    return config


def _serve(options: argparse.Namespace) -> int:
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = _config(options)
    tls = _tls(config)
    worker: Worker | None = options.as_worker
    if config.server.workers > 1 and worker is None:
        command = [sys.executable, "-m", "deltawire.server.cli", *options.arguments, "--as-worker"]
        return look_after(config.server, command, lambda port: _say_where(config, port))
    if worker is not None:
        worker.end_with_parent()
    _make_room(config)
    with _ledger(config) as ledger, written(sys.stdout):
        _DRIVERS[config.server.transport](_Start(options, config, ledger, tls))
    return _FINISHED


def _say_where(config: Config, port: int) -> None:
    server = config.server
    scheme = "http" if server.tls_cert is None else "https"
    host = f"[{server.host}]" if ":" in server.host else server.host
    workers = f", {server.workers} workers" if server.workers > 1 else ""
    print(
        f"deltawire serves {scheme}://{host}:{port}/v1/chat/completions"
        f" by {server.transport}{workers}",
        flush=True,
    )


@dataclass(frozen=True)
class _Start:
    """What each driver is started with."""

    options: argparse.Namespace
    config: Config
    ledger: Ledger | None
    tls: ssl.SSLContext | None

    def service(self, kind: type[T]) -> Service[T]:
        return Service(self.config, kind, self.ledger)

    def listens(self, port: int) -> None:
        """To be called once connections are accepted."""
        _tame_collector()
        if self.options.as_worker is None:
            _say_where(self.config, port)
        else:
            self.options.as_worker.listens()

    def reload(self, service: Service[Any]) -> None:
        """Take in what the configuration says now; one that is wrong changes nothing."""
        if self.options.upstream is not None:
            _log.warning("SIGHUP: there is no configuration to read again")
            return
        try:
            config = _config(self.options)
            if (self.tls is None) != (config.server.tls_cert is None):
                raise InvalidSetting("server.tls_cert", "to turn TLS on or off takes a restart")
            # Into a context of its own: one that fails halfway spoils the context.
            _tls(config)
            fixed = service.reload(config)
            if self.tls is not None:
                # Of those who connect from now on.
                _load_certificate(self.tls, config)
            _make_room(config)
        except (ConfigError, InvalidSetting) as error:
            _log.error("SIGHUP: the configuration stays as it was: %s", error)
            return
        for name in fixed:
            _log.warning("SIGHUP: %s was changed, which takes a restart", name)
        # The level of what a user asked for, and is to see that it was done.
        _log.warning("SIGHUP: serving by the configuration as it is now")


def _make_room(config: Config) -> None:
    shortage = raise_limit(config.limits.connections)
    if shortage is not None:
        _log.warning("%s", shortage)


@contextlib.contextmanager
def _ledger(config: Config) -> Iterator[Ledger | None]:
    if not config.ledger.url:
        yield None
        return
    ledger = Ledger(config.ledger.url, on_failure=config.ledger.on_failure)
    try:
        yield ledger
    finally:
        ledger.close()


def _tls(config: Config) -> ssl.SSLContext | None:
    if config.server.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_certificate(context, config)
    return context


def _load_certificate(context: ssl.SSLContext, config: Config) -> None:
    server = config.server
    try:
        context.load_cert_chain(server.tls_cert or "", server.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidSetting("server.tls_cert", f"cannot be loaded: {error}") from None


def _tame_collector() -> None:
    """Let the garbage collector look at less, and less often.

    What has been imported stays, and what a stream is made of goes with its last reference; to look
    through all of it again and again took a tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def _run_asyncio(start: _Start) -> None:
    import asyncio

    from deltawire.server.on_asyncio import serve
    from deltawire.transports import AsyncioTransport

    async def main() -> None:
        service = start.service(AsyncioTransport)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in _ENDS:
            loop.add_signal_handler(number, stop.set)
        for number in _RELOADS:
            loop.add_signal_handler(number, start.reload, service)
        started: asyncio.Future[int] = loop.create_future()
        started.add_done_callback(lambda port: start.listens(port.result()))
        await serve(service, stop, tls=start.tls, started=started)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main())


def _loop_factory() -> Callable[[], Any] | None:
    """uvloop's event loop if it is installed, else asyncio's own."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    factory: Callable[[], Any] = importlib.import_module("uvloop").new_event_loop
    return factory


def _run_trio(start: _Start) -> None:
    import trio

    from deltawire.server.on_trio import serve
    from deltawire.transports import TrioTransport

    async def main() -> None:
        service = start.service(TrioTransport)
        stop = trio.Event()
        with trio.open_signal_receiver(*_ENDS, *_RELOADS) as signals:
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    async for number in signals:
                        if number in _ENDS:
                            stop.set()
                        else:
                            start.reload(service)

                nursery.start_soon(wait)
                await serve(service, stop, tls=start.tls, started=start.listens)
                nursery.cancel_scope.cancel()

    trio.run(main)


# Seconds; at most so long does one thread keep the others waiting.
_SWITCH: Final = 0.05


def _run_sync(start: _Start) -> None:
    from deltawire.server.on_sync import serve
    from deltawire.transports import SyncTransport

    # Every thread that waits for the interpreter wakes so often to say so: of a hundred, one every
    # 50 us by default. They give way by themselves, whenever they read or write.
    sys.setswitchinterval(_SWITCH)
    service = start.service(SyncTransport)
    stop = threading.Event()
    for number in _ENDS:
        signal.signal(number, lambda *_: stop.set())
    for number in _RELOADS:
        # In the main thread, which only waits.
        signal.signal(number, lambda *_: start.reload(service))
    serve(service, stop, tls=start.tls, started=start.listens)


_DRIVERS: Final[dict[str, Callable[[_Start], None]]] = {
    "asyncio": _run_asyncio,
    "sync": _run_sync,
    "trio": _run_trio,
}
