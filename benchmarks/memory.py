"""What an idle stream costs in memory: open, its first delta said, and then silence.

The resident memory of a server's processes with so many streams open, less what it was before; and
before that a tenth as many streams were opened and ended, so that everything is imported and made.
The sync driver has threads, of whose stacks only what was used is resident.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import servers
from benchmarks.display import progress, table
from benchmarks.processes import Failed, Load, bench, resident
from benchmarks.servers import ASYNCIO, NGINX, SYNC, TRIO, Contender, Server
from benchmarks.verdicts import Verdict, judged

KIB: Final = 1024
BAR: Final = 12.0


class Size(NamedTuple):
    """How much is measured: streams that are open, rounds."""

    streams: int
    rounds: int


FULL: Final = Size(1000, 3)
QUICK: Final = Size(250, 1)


OURS: Final = (ASYNCIO, TRIO, SYNC)


def run(
    *,
    quick: bool = False,
    peers: bool = False,
    size: Size | None = None,
    ours: Sequence[Contender] = OURS,
) -> dict[str, Any]:
    size = size or (QUICK if quick else FULL)
    wanted = [*ours, NGINX, *([servers.STARLETTE] if peers else [])]
    kept: dict[str, list[float]] = {}
    absent: dict[str, str] = {}
    steps = size.rounds * len(wanted)
    with tempfile.TemporaryDirectory() as name, progress("memory", steps) as step:
        folder = Path(name)
        with bench(folder) as (upstream, load):
            for _ in range(size.rounds):
                for each in wanted:
                    step(each.name)
                    # A server of its own for each round: memory that was had once is kept.
                    with servers.started([each], upstream.port, folder, []) as (running, missing):
                        absent |= missing
                        for server in running.values():
                            try:
                                kept.setdefault(server.name, []).append(_kept(server, load, size))
                            except Failed as why:
                                if not server.is_peer:
                                    said = server.complaint()
                                    raise Failed(f"{server.name}: {why}; {said}") from why
                                absent[server.name] = f"failed: {why}"
    rows = [(name, f"{min(each):.1f}", f"{max(each):.1f}") for name, each in kept.items() if each]
    table(
        f"{size.streams} open streams that are idle, KiB of resident memory for each",
        ("", "least", "most"),
        [*rows, *absent.items()],
    )
    bars = [
        Verdict(
            what=f"{each.name}: an idle stream", value=min(kept[each.name]), most=BAR, unit="KiB"
        )
        for each in ours
    ]
    return {"unit": "KiB", "servers": kept, "absent": absent, "bars": judged(bars)}


def _kept(server: Server, load: Load, size: Size) -> float:
    """KiB of resident memory of one idle stream."""
    asked = {"port": server.port, "path": server.path}
    few = max(1, size.streams // 10)
    load.do("open", **asked, model=f"burst-1-{few}", streams=few)
    load.do("finish")
    before = _settled(server)
    load.do("open", **asked, model="idle", streams=size.streams)
    after = _settled(server)
    load.do("drop")
    return (after - before) / size.streams / KIB


def _settled(server: Server) -> int:
    """Its resident bytes, once two looks see the same."""
    last = -1
    while (now := resident(server.pid)) != last:
        last = now
        time.sleep(0.3)
    return now
