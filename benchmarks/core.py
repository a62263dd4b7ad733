"""CPU time per event of the decoder and of both renderings, beside the floor and the peers.

Streams of 2,000 deltas of one kind, written by `deltawire.testing` as OpenAI writes them. Every
contender runs once in every round, in turn, so that a busy neighbour slows all of them; what is
shown is the fastest round and the median. Time is that of the process (`time.process_time_ns`),
garbage collection is on as it is in a server, and every run begins with an empty young generation.

The floor is what msgspec takes to find `delta` in the same payloads: nobody who parses JSON is
below it.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from benchmarks import peers
from deltawire import ChatStream, SSEDecoder
from deltawire.testing import OPENAI, Answer, FunctionCall, Reasoning, write_frames

DELTAS: Final = 2000

# The bars, as ratios; NOTES.md says what was tried where they are not met.
ONE_PER_CALL_BAR: Final = 2.5
PIECES_BAR: Final = 3.0
SLICES_BAR: Final = 15.0
CHUNKS_BAR: Final = 2.0

Contender = Callable[[], None]


class _Floor(msgspec.Struct):
    delta: msgspec.Raw


def kinds() -> dict[str, list[bytes]]:
    """The frames of a stream of each kind."""
    words = " word" * DELTAS
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
    found.update(peers.contenders(frames))
    return found


def _feed(take: Callable[[bytes], object], pieces: list[bytes]) -> None:
    for piece in pieces:
        take(piece)


def measure(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Microseconds of CPU per delta of every round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            gc.collect()
            start = time.process_time_ns()
            contender()
            times[name].append((time.process_time_ns() - start) / DELTAS / 1000)
    return times


def run(*, quick: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for kind, frames in kinds().items():
        times = measure(contenders(frames), rounds=3 if quick else 15)
        floor = min(times["floor"])
        print(f"\n{kind}: {len(frames)} events, us of CPU per event")
        print(f"{'':34}{'min':>9}{'median':>9}{'x floor':>9}")
        figures[kind] = {}
        for name, all_rounds in times.items():
            least, median = min(all_rounds), statistics.median(all_rounds)
            figures[kind][name] = {"min": least, "median": median, "floors": least / floor}
            print(f"{name:34}{least:9.2f}{median:9.2f}{least / floor:9.1f}")
        for name in peers.absent():
            print(f"{name:34}{'not installed':>27}")
        _judge(figures[kind])
    return figures


def _judge(figures: dict[str, dict[str, float]]) -> None:
    each, pieces = (
        figures[f"translate, {feed}"] for feed in ("one event per call", "16 KiB pieces")
    )
    slices = figures["translate, 7-byte pieces"]["min"] / each["min"]
    chunks = figures["receive_data, one event per call"]["min"] / each["min"]
    for what, value, bar in (
        ("translate, one event per call, to the floor", each["floors"], ONE_PER_CALL_BAR),
        ("translate, 16 KiB pieces, to the floor", pieces["floors"], PIECES_BAR),
        ("7-byte pieces to one event per call", slices, SLICES_BAR),
        ("receive_data to translate, one event per call", chunks, CHUNKS_BAR),
    ):
        verdict = "holds" if value <= bar else f"falls short by {value / bar - 1:.0%}"
        print(f"  {what}: {value:.1f}x, bar {bar:.1f}x: {verdict}")
