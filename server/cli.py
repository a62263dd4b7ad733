"""The command `deltawire`: `translate` and `request`, on the core alone; `demo`, `serve`,
`simulate`, `config` and `usage`, which are in files of their own.

Each subcommand imports what it needs when it is run. Exit status: 0 after a finish, 1 after a
failure, 2 for wrong usage; 130 after an interrupt and 141 when the reader of the output left, as
shells have it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from deltawire import (
    DIALECTS,
    ChatStream,
    Chunk,
    Done,
    Event,
    InvalidRequest,
    UnsupportedField,
    __version__,
    dialect_for_url,
    dialect_named,
    to_responses_request,
)

if TYPE_CHECKING:
    from deltawire import ReportEntry

FINISHED: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130
READER_LEFT: Final = 141

_READ_SIZE: Final = 64 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] and given[0] in _ELSEWHERE:
            return _elsewhere(given[0], given[1:])
        options = _parser().parse_args(given)
        status: int = options.run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it flushes standard output at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deltawire", description="Responses streams in, Chat Completions chunks out."
    )
    parser.add_argument("--version", action="version", version=f"deltawire {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    translate = commands.add_parser(
        "translate",
        help="translate a Responses stream",
        description="Translate a Responses event stream into a Chat Completions stream. Each"
        " frame is written as soon as its event is there.",
        epilog="exit status: 0 after a finish, 1 after a failure, 2 for wrong usage",
    )
    translate.set_defaults(run=_translate)
    translate.add_argument("file", metavar="FILE", nargs="?", help="default: standard input")
    translate.add_argument(
        "--format",
        choices=["sse", "jsonl", "text"],
        default="sse",
        help="event stream, one JSON value a line, or only what the model says (default: sse)",
    )
    translate.add_argument("--include-usage", action="store_true", help="end with a usage chunk")
    translate.add_argument(
        "--client-tool",
        metavar="NAME",
        action="append",
        help="a custom tool of the client's; all others are then the provider's (repeatable)",
    )
    translate.add_argument(
        "--dialect", choices=sorted(DIALECTS), default="generic", help="(default: generic)"
    )
    translate.add_argument(
        "--reasoning",
        choices=["reasoning_content", "reasoning", "none"],
        default="reasoning_content",
        help="the key that reasoning is said under (default: reasoning_content)",
    )
    translate.add_argument(
        "--stop", metavar="TEXT", action="append", help="end the content before TEXT (repeatable)"
    )

    request = commands.add_parser(
        "request",
        help="translate a chat request",
        description="Translate a Chat Completions request (JSON) into a Responses request. What"
        " cannot be carried over is reported on standard error.",
        epilog="exit status: 0 for a request, 1 for one that is refused, 2 for wrong usage",
    )
    request.set_defaults(run=_request)
    request.add_argument("file", metavar="FILE", nargs="?", help="default: standard input")
    upstream = request.add_mutually_exclusive_group()
    upstream.add_argument(
        "--dialect", choices=sorted(DIALECTS), default="openai", help="(default: openai)"
    )
    upstream.add_argument("--upstream", metavar="URL", help="the dialect of this upstream")
    request.add_argument(
        "--strict", action="store_true", help="refuse a request of which anything is lost"
    )

    for name, summary in _ELSEWHERE.items():
        # Its options are those of a file that is imported when it is asked for.
        commands.add_parser(name, help=summary)
    return parser


_ELSEWHERE: Final = {
    "demo": "show it at work, without a key and without a network",
    "serve": "serve Chat Completions in front of a Responses upstream",
    "simulate": "serve simulated models, for trying and for tests, without a key",
    "usage": "show what the ledger of a server has",
    "config": "print an example of a configuration, check one, make a client's key",
}


def _elsewhere(name: str, arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"deltawire {name}", description=_ELSEWHERE[name].capitalize() + "."
    )
    try:
        module = importlib.import_module(f"deltawire.server.{_HOMES.get(name, name)}")
        module.add_arguments(parser)
        # One of them starts others like itself.
        known = argparse.Namespace(arguments=[name, *arguments])
        status: int = module.run(parser.parse_args(arguments, known))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("deltawire"):
            raise
        needs = f"needs the package {error.name!r}: pip install 'deltawire[server]'"
        return _complain(f"{name} {needs}", WRONG_USAGE)
    return status


# The files whose name is not that of the command.
_HOMES: Final = {"config": "config_cli"}


def _translate(options: argparse.Namespace) -> int:
    stream = ChatStream(
        include_usage=options.include_usage,
        client_tools=options.client_tool,
        dialect=dialect_named(options.dialect),
        reasoning=None if options.reasoning == "none" else options.reasoning,
        stop=options.stop,
    )
    try:
        for data in _read(options.file):
            _write(stream.receive_data(data), options.format)
            if stream.wants_close:
                break
    except _Unreadable as error:
        return _complain(str(error), WRONG_USAGE)
    _write(stream.receive_eof(), options.format)
    if options.format == "text":
        print()
    if stream.failure is not None:
        return _complain(stream.failure.message, FAILED)
    return FINISHED


class _Unreadable(Exception):
    """The input cannot be read; the message says which and why."""


def _complain(message: str, status: int) -> int:
    print(f"deltawire: {message}", file=sys.stderr)
    return status


def _request(options: argparse.Namespace) -> int:
    import msgspec

    dialect = dialect_named(options.dialect)
    if options.upstream is not None:
        dialect = dialect_for_url(options.upstream)
    try:
        chat_request = msgspec.json.decode(b"".join(_read(options.file)))
        translated = to_responses_request(chat_request, dialect=dialect, strict=options.strict)
    except _Unreadable as error:
        return _complain(str(error), WRONG_USAGE)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _complain(f"the request is no JSON that can be read: {error}", FAILED)
    except UnsupportedField as error:
        _print_report(error.report)
        return _complain(error.message, FAILED)
    except InvalidRequest as error:
        return _complain(error.message, FAILED)
    _print_report(translated.report)
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(translated.body)) + b"\n")
    return FINISHED


def _print_report(report: list[ReportEntry]) -> None:
    for entry in report:
        print(f"{entry.action} {entry.path}: {entry.reason}", file=sys.stderr)


def _read(file: str | None) -> Iterator[bytes]:
    """Whatever is there, as soon as it is there: a buffered reader would wait for more."""
    try:
        # Not from sys.stdin, which is None where nobody opened it.
        source = 0 if file is None else os.open(file, os.O_RDONLY)
        while data := os.read(source, _READ_SIZE):
            yield data
    except OSError as error:
        raise _Unreadable(f"{file or 'standard input'}: {error.strerror}") from None


def _write(events: list[Event], form: str) -> None:
    out = sys.stdout.buffer
    for event in events:
        out.write(_rendered(event, form))
        out.flush()


def _rendered(event: Event, form: str) -> bytes:
    if form == "sse":
        return event.to_wire()
    if form == "jsonl":
        # The end of the output says as much as [DONE], which is no JSON.
        payload = b"" if isinstance(event, Done) else event.to_wire()
        return payload.removeprefix(b"data: ").removesuffix(b"\n")
    return _text(event).encode()


def _text(event: Event) -> str:
    """What the model says in this event, reasoning and calls left out."""
    if not isinstance(event, Chunk) or not event.choices:
        return ""
    delta = event.choices[0].delta
    return (delta.content or "") + (delta.refusal or "")


if __name__ == "__main__":
    sys.exit(main())
