"""CPU time per event of the decoder and of both renderings, beside the floor and the peers.

Streams of 2,000 deltas of one kind, written by `deltawire.testing` as OpenAI writes them. Every
contender runs once in every round, in turn, so that a busy neighbour slows all of them; what is
shown is the fastest round, the median, and the median of the ratios to the floor of the same round.
Time is that of the process (`time.process_time_ns`), garbage collection is on as it is in a server,
and every run begins with an empty young generation. Peers (`--peers`) run in processes of their own
and measure themselves in the same way.

The floor is what msgspec takes to find `delta` in the same payloads: nobody who parses JSON is
below it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from benchmarks import peers as others
from benchmarks.display import progress, table
from benchmarks.verdicts import Verdict, judged, of_pairs, ratio
from deltawire import ChatStream, SSEDecoder
from deltawire.testing import OPENAI, Answer, FunctionCall, Reasoning, write_frames

DELTAS: Final = 2000

# The bars, as ratios; NOTES.md says what was tried where they are not met.
ONE_PER_CALL_BAR: Final = 2.5
PIECES_BAR: Final = 3.0
SLICES_BAR: Final = 15.0
CHUNKS_BAR: Final = 2.0

Contender = Callable[[], None]


class Size(NamedTuple):
    """How much is measured: deltas of a stream, rounds, kinds of streams."""

    deltas: int
    rounds: int
    kinds: tuple[str, ...] = ("text", "tool", "reasoning")


FULL: Final = Size(DELTAS, 15)
QUICK: Final = Size(DELTAS, 3)


class _Floor(msgspec.Struct):
    delta: msgspec.Raw


def kinds(deltas: int = DELTAS) -> dict[str, list[bytes]]:
    """The frames of a stream of each kind."""
    words = " word" * deltas
    answers = {
        "text": Answer(words),
        "tool": Answer(FunctionCall("write", json.dumps({"text": words}))),
        "reasoning": Answer(Reasoning(words)),
    }
    return {kind: _with_long_ids(write_frames(each, OPENAI)) for kind, each in answers.items()}


def _with_long_ids(frames: list[bytes]) -> list[bytes]:
    """Item ids as long as OpenAI's are; `deltawire.testing` writes short ones."""
    tail = b'_08521e071015afca016a3c118a75a081958ecd832ff0e67b25"'
    return [
        frame.replace(b'"msg_0"', b'"msg' + tail)
        .replace(b'"fc_0"', b'"fc' + tail)
        .replace(b'"rs_0"', b'"rs' + tail)
        for frame in frames
    ]


def sliced(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def contenders(frames: list[bytes]) -> dict[str, Contender]:
    blob = b"".join(frames)
    feeds = {
        "one event per call": frames,
        "16 KiB pieces": sliced(blob, 16384),
        "7-byte pieces": sliced(blob, 7),
        "one blob": [blob],
    }
    deltas = [frame.split(b"data: ", 1)[1] for frame in frames if b'"delta":' in frame]
    decode = msgspec.json.Decoder(_Floor).decode

    def floor() -> None:
        for payload in deltas:
            decode(payload)

    found: dict[str, Contender] = {"floor": floor}
    for feed, pieces in feeds.items():
        found[f"SSEDecoder, {feed}"] = lambda pieces=pieces: _feed(  # type: ignore[misc]
            SSEDecoder().receive_data, pieces
        )
        found[f"receive_data, {feed}"] = lambda pieces=pieces: _feed(  # type: ignore[misc]
            ChatStream().receive_data, pieces
        )
        found[f"translate, {feed}"] = lambda pieces=pieces: _feed(  # type: ignore[misc]
            ChatStream().translate, pieces
        )
    return found


def _feed(take: Callable[[bytes], object], pieces: list[bytes]) -> None:
    for piece in pieces:
        take(piece)


def measure(
    contenders: dict[str, Contender], peers: dict[str, others.Peer], size: Size, what: str
) -> dict[str, list[float]]:
    """Microseconds of CPU per delta of every round."""
    times: dict[str, list[float]] = {name: [] for name in (*contenders, *peers)}
    with progress(what, size.rounds * len(times)) as step:
        for _ in range(size.rounds):
            for name, contender in contenders.items():
                step(name)
                gc.collect()
                start = time.process_time_ns()
                contender()
                times[name].append((time.process_time_ns() - start) / size.deltas / 1000)
            for name, peer in peers.items():
                step(name)
                times[name].append(peer.run() / size.deltas / 1000)
    return times


def run(*, quick: bool = False, peers: bool = False, size: Size | None = None) -> dict[str, Any]:
    size = size or (QUICK if quick else FULL)
    figures: dict[str, Any] = {"unit": "us of CPU per event"}
    verdicts: list[Verdict] = []
    for kind in size.kinds:
        frames = kinds(size.deltas)[kind]
        with contextlib.ExitStack() as stack:
            running: dict[str, others.Peer] = {}
            absent: dict[str, str] = {}
            for name, (peer, environment) in others.IN_PROCESS.items() if peers else ():
                try:
                    started = stack.enter_context(others.Peer(peer, environment, frames))
                    running[f"{name} {started.version}"] = started
                except others.Missing as why:
                    absent[name] = str(why)
            times = measure(contenders(frames), running, size, kind)
        figures[kind] = _figures(times) | {name: {"absent": why} for name, why in absent.items()}
        _show(f"{kind}: {len(frames)} events, us of CPU per event", figures[kind])
        verdicts += _verdicts(kind, times)
    return {**figures, "bars": judged(verdicts)}


def _figures(times: dict[str, list[float]]) -> dict[str, Any]:
    ours, floor = times["translate, one event per call"], times["floor"]
    return {
        name: {
            "min": min(each),
            "median": statistics.median(each),
            "floors": of_pairs(each, floor),
            "translates": of_pairs(each, ours),
        }
        for name, each in times.items()
    }


def _show(title: str, figures: dict[str, dict[str, Any]]) -> None:
    rows = [
        (name, each["absent"])
        if "absent" in each
        else (
            name,
            f"{each['min']:.2f}",
            f"{each['median']:.2f}",
            f"{each['floors']:.1f}",
            f"{each['translates']:.1f}",
        )
        for name, each in figures.items()
    ]
    table(title, ("", "min", "median", "x floor", "x translate"), rows)


def _verdicts(kind: str, times: dict[str, list[float]]) -> list[Verdict]:
    each, pieces = "translate, one event per call", "translate, 16 KiB pieces"
    slices, chunks = "translate, 7-byte pieces", "receive_data, one event per call"
    return [
        Verdict(what=f"{kind}: {what}", value=ratio(times, name, base), most=most)
        for what, name, base, most in (
            (f"{each}, to the floor", each, "floor", ONE_PER_CALL_BAR),
            (f"{pieces}, to the floor", pieces, "floor", PIECES_BAR),
            ("7-byte pieces to one event per call", slices, each, SLICES_BAR),
            ("receive_data to translate, one event per call", chunks, each, CHUNKS_BAR),
        )
    ]
