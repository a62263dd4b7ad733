"""What an event costs in the server, beside nginx and the proxies one would otherwise run.

Clients, upstream and each server are processes of their own. In a burst all streams are opened at
once and upstream writes as fast as it is read; paced, a stream is opened every few ms and each says
a delta every 10 ms, so that nearly every delta is a wake of its own. All servers run all the time
and take their turns in every round. CPU is user and system time of the server's processes from the
first connection to the last byte, so that it has what the requests cost; it is given per delta.
The first delta's time is a client's, from request to first delta, with upstream asked directly for
comparison in the same round.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import servers
from benchmarks.display import progress, table
from benchmarks.processes import Failed, Load, Upstream, bench, cpu
from benchmarks.servers import ASYNCIO, LITELLM, NGINX, SYNC, TRIO, Contender, Server
from benchmarks.verdicts import Verdict, judged, ratio

STRAIGHT: Final = "upstream itself"

BURST_BAR: Final = 1.5
LITELLM_BAR: Final = 100.0
PACED_BAR: Final = 2.0
ADDED_BAR: Final = 2.0
OTHERS_BAR: Final = 3.0


class Size(NamedTuple):
    """How much is measured.

    rounds, bursts: of each server, in each round so many bursts.
    streams, deltas: of a burst.
    paced_rounds, paced_streams, paced_deltas: of the paced load.
    pace, interval: ms between two deltas of a stream, and between two streams.
    few: the streams of LiteLLM's proxy, which would take minutes for all.
    """

    rounds: int = 7
    bursts: int = 3
    streams: int = 100
    deltas: int = 200
    paced_rounds: int = 5
    paced_streams: int = 50
    paced_deltas: int = 200
    pace: int = 10
    interval: int = 20
    few: int = 4


FULL: Final = Size()
QUICK: Final = Size(rounds=2, bursts=1, deltas=50, paced_rounds=1, paced_deltas=30, interval=10)


@dataclass
class Times:
    """Of one server: us of CPU per delta of every round, ms to the first delta of every stream."""

    burst: list[float] = field(default_factory=list)
    paced: list[float] = field(default_factory=list)
    first: list[list[float]] = field(default_factory=list)


class _Run:
    """The measurement of one round of one server."""

    def __init__(self, size: Size, upstream: Upstream, load: Load) -> None:
        self._size = size
        self._load = load
        self._upstream = upstream
        self.times: dict[str, Times] = {}

    def straight(self) -> Server:
        port, pid = self._upstream.port, self._upstream.pid
        return Server(STRAIGHT, servers.RESPONSES, port, pid, is_peer=False)

    def models(self) -> list[str]:
        size = self._size
        return [
            f"burst-{size.deltas}-{size.few}",
            f"paced-{size.paced_deltas}-{size.pace}",
        ]

    def burst(self, server: Server) -> None:
        size = self._size
        few = server.name == LITELLM.name
        streams, bursts = (size.few, 1) if few else (size.streams, size.bursts)
        before = cpu(server.pid)
        for _ in range(bursts):
            self._ask(server, f"burst-{size.deltas}-{streams}", streams, size.deltas, 0)
        spent = cpu(server.pid) - before
        self._of(server).burst.append(spent / 1000 / (bursts * streams * size.deltas))

    def paced(self, server: Server) -> None:
        size = self._size
        streams = size.few if server.name == LITELLM.name else size.paced_streams
        model = f"paced-{size.paced_deltas}-{size.pace}"
        before = cpu(server.pid)
        first = self._ask(server, model, streams, size.paced_deltas, size.interval / 1000)
        spent = cpu(server.pid) - before
        self._of(server).paced.append(spent / 1000 / (streams * size.paced_deltas))
        self._of(server).first.append([1000 * each for each in first])

    def _of(self, server: Server) -> Times:
        return self.times.setdefault(server.name, Times())

    def _ask(
        self, server: Server, model: str, streams: int, deltas: int, interval: float
    ) -> list[float]:
        asked = {"port": server.port, "path": server.path, "model": model}
        answer = self._load.do("open", **asked, streams=streams, interval=interval)
        events = self._load.do("finish")["events"]
        if events < streams * deltas:
            raise Failed(f"{server.name}: {events} events of {streams * deltas} deltas")
        first: list[float] = answer["first"]
        return first


OURS: Final = (ASYNCIO, servers.PLAIN, TRIO, SYNC, servers.RELAY)
THEIRS: Final = (servers.STARLETTE, LITELLM)


def run(
    *,
    quick: bool = False,
    peers: bool = False,
    size: Size | None = None,
    ours: Sequence[Contender] = OURS,
) -> dict[str, Any]:
    size = size or (QUICK if quick else FULL)
    wanted = [*ours, NGINX, *(THEIRS if peers else ())]
    with tempfile.TemporaryDirectory() as name, bench(Path(name)) as (upstream, load):
        one = _Run(size, upstream, load)
        with servers.started(wanted, upstream.port, Path(name), one.models()) as (running, absent):
            _rounds("warm-up", 1, one.burst, running, absent)
            one.times.clear()
            _rounds("burst", size.rounds, one.burst, running, absent)
            straight = {STRAIGHT: one.straight()}
            _rounds("paced", size.paced_rounds, one.paced, straight | running, absent)
    times = {name: each for name, each in one.times.items() if name not in absent}
    _show(size, times, absent)
    return {
        "unit": "us of CPU per delta; ms to the first delta",
        "size": size._asdict(),
        "servers": {name: _figures(each, times) for name, each in times.items()},
        "absent": absent,
        "bars": judged(_verdicts(times)),
    }


def _rounds(
    what: str,
    rounds: int,
    measure: Callable[[Server], None],
    running: dict[str, Server],
    absent: dict[str, str],
) -> None:
    with progress(what, rounds * len(running)) as step:
        for _ in range(rounds):
            for name, server in running.items():
                if name in absent:
                    continue
                step(name)
                try:
                    measure(server)
                except Failed as why:
                    if not server.is_peer:
                        raise Failed(f"{name}, {what}: {why}; {server.complaint()}") from why
                    absent[name] = f"failed: {why}"


def _figures(each: Times, times: dict[str, Times]) -> dict[str, Any]:
    first = sorted(itertools.chain(*each.first))
    return {
        "burst": each.burst,
        "paced": each.paced,
        "first": first,
        "first_p50": statistics.median(first),
        "first_p99": first[int(len(first) * 0.99)],
        "added_p50": _added(each, times[STRAIGHT]),
    }


def _added(each: Times, straight: Times) -> float:
    """ms that it adds to the first delta: the difference of the medians of a round, the median."""
    rounds = zip(each.first, straight.first, strict=True)
    return statistics.median(
        statistics.median(through) - statistics.median(direct) for through, direct in rounds
    )


def _of_load(times: dict[str, Times], load: str) -> dict[str, list[float]]:
    return {name: getattr(each, load) for name, each in times.items()}


def _show(size: Size, times: dict[str, Times], absent: dict[str, str]) -> None:
    missing: list[tuple[str, ...]] = list(absent.items())
    few = f"LiteLLM's proxy: {size.few}"
    table(
        f"burst: {size.streams} streams at once ({few}) of {size.deltas} deltas,"
        " us of server CPU per delta",
        ("", "min", "median", "x nginx", "x asyncio"),
        [_cpu_row(name, _of_load(times, "burst")) for name, each in times.items() if each.burst]
        + missing,
    )
    table(
        f"paced: {size.paced_streams} streams ({few}), a delta every {size.pace} ms,"
        " us of server CPU per delta, ms to the first delta",
        ("", "min", "median", "x nginx", "x asyncio", "first p50", "p99", "added p50"),
        [
            _cpu_row(name, _of_load(times, "paced")) + _first_row(each, times)
            for name, each in times.items()
        ]
        + missing,
    )


def _cpu_row(name: str, times: dict[str, list[float]]) -> tuple[str, ...]:
    each = times[name]
    shown = [
        "" if value is None else f"{value:.2f}"
        for value in (ratio(times, name, other) for other in (NGINX.name, ASYNCIO.name))
    ]
    return (name, f"{min(each):.2f}", f"{statistics.median(each):.2f}", *shown)


def _first_row(each: Times, times: dict[str, Times]) -> tuple[str, ...]:
    figures = _figures(each, times)
    return tuple(f"{figures[name]:.2f}" for name in ("first_p50", "first_p99", "added_p50"))


def _verdicts(times: dict[str, Times]) -> list[Verdict]:
    burst, paced = _of_load(times, "burst"), _of_load(times, "paced")
    return [
        Verdict(
            what="burst: asyncio to nginx, per event",
            value=ratio(burst, ASYNCIO.name, NGINX.name),
            most=BURST_BAR,
        ),
        Verdict(
            what="burst: LiteLLM's proxy to asyncio, per event",
            value=ratio(burst, LITELLM.name, ASYNCIO.name),
            least=LITELLM_BAR,
        ),
        Verdict(
            what="paced: asyncio to nginx, per event",
            value=ratio(paced, ASYNCIO.name, NGINX.name),
            most=PACED_BAR,
        ),
        Verdict(
            what="paced: what asyncio adds to the first delta, p50",
            value=_added(times[ASYNCIO.name], times[STRAIGHT]),
            most=ADDED_BAR,
            unit="ms",
        ),
        *(
            Verdict(
                what=f"{load}: {other.name.split()[-1]} to asyncio, per event",
                value=ratio(measured, other.name, ASYNCIO.name),
                most=OTHERS_BAR,
            )
            for load, measured in (("burst", burst), ("paced", paced))
            for other in (TRIO, SYNC)
        ),
    ]
