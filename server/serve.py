"""`deltawire serve`: a configuration, its ledger, and the driver that it names, until a signal.

Each driver is imported when it is chosen, because each needs packages of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from deltawire.errors import InvalidSetting
from deltawire.server.config import Config, ConfigError, load, quick
from deltawire.server.ledger import Ledger
from deltawire.server.service import Service

_FINISHED: Final = 0
_FAILED: Final = 1
_WRONG_USAGE: Final = 2

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


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
        "--no-ledger", action="store_true", help="write down no attempts, whatever the file says"
    )


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Exit status: 1 if it cannot listen, 2 for a wrong setting."""
    try:
        config = _config(options)
        return _serve(config)
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
    if options.transport is not None:
        config = replace(config, server=replace(config.server, transport=options.transport))
    if options.no_ledger:
        config = replace(config, ledger=replace(config.ledger, url=""))
    return config


def _serve(config: Config) -> int:
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    tls = _tls(config)
    with _ledger(config) as ledger:
        _DRIVERS[config.server.transport](config, ledger, tls)
    return _FINISHED


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
    server = config.server
    if server.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(server.tls_cert, server.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidSetting("server.tls_cert", f"cannot be loaded: {error}") from None
    return context


def _say_where(config: Config, port: int, tls: ssl.SSLContext | None) -> None:
    scheme = "http" if tls is None else "https"
    host = config.server.host
    shown = f"[{host}]" if ":" in host else host
    print(
        f"deltawire serves {scheme}://{shown}:{port}/v1/chat/completions"
        f" by {config.server.transport}",
        flush=True,
    )


def _run_asyncio(config: Config, ledger: Ledger | None, tls: ssl.SSLContext | None) -> None:
    import asyncio

    from deltawire.server.on_asyncio import serve
    from deltawire.transports import AsyncioTransport

    async def main() -> None:
        service = Service(config, AsyncioTransport, ledger)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, stop.set)
        started: asyncio.Future[int] = loop.create_future()
        started.add_done_callback(lambda port: _say_where(config, port.result(), tls))
        await serve(service, stop, tls=tls, started=started)

    asyncio.run(main())


def _run_trio(config: Config, ledger: Ledger | None, tls: ssl.SSLContext | None) -> None:
    import trio

    from deltawire.server.on_trio import serve
    from deltawire.transports import TrioTransport

    async def main() -> None:
        service = Service(config, TrioTransport, ledger)
        stop = trio.Event()
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    async for _ in signals:
                        stop.set()

                nursery.start_soon(wait)
                await serve(
                    service, stop, tls=tls, started=lambda port: _say_where(config, port, tls)
                )
                nursery.cancel_scope.cancel()

    trio.run(main)


def _run_sync(config: Config, ledger: Ledger | None, tls: ssl.SSLContext | None) -> None:
    from deltawire.server.on_sync import serve
    from deltawire.transports import SyncTransport

    service = Service(config, SyncTransport, ledger)
    stop = threading.Event()
    for number in _SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    serve(service, stop, tls=tls, started=lambda port: _say_where(config, port, tls))


_DRIVERS: Final[dict[str, Callable[[Config, Ledger | None, ssl.SSLContext | None], Any]]] = {
    "asyncio": _run_asyncio,
    "sync": _run_sync,
    "trio": _run_trio,
}
