"""Every benchmark runs, at a size that shows nothing; what it says of times is no concern here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import core, memory, peers, request, scaling, server, transports
from benchmarks.servers import ASYNCIO, SYNC
from benchmarks.verdicts import Verdict, of_pairs

Figures = dict[str, Any]

SCALING = scaling.Size(
    deltas=(10, 100),
    rounds=1,
    event=10_000,
    slices=(7, 64),
    sliced=20,
    streams=(1, 3),
    events=6,
    server_rounds=1,
    methods=("translate",),
)
SERVER = server.Size(
    rounds=1,
    bursts=1,
    streams=2,
    deltas=3,
    paced_rounds=1,
    paced_streams=2,
    paced_deltas=3,
    pace=1,
    interval=1,
)
RUNS: dict[str, Callable[[], Figures]] = {
    "core": lambda: core.run(size=core.Size(20, 1, ("text",))),
    "server": lambda: server.run(size=SERVER, ours=[ASYNCIO]),
    "transports": lambda: transports.run(size=transports.Size(20, 1)),
    "memory": lambda: memory.run(size=memory.Size(3, 1), ours=[SYNC]),
    "scaling": lambda: scaling.run(size=SCALING),
    "request": lambda: request.run(size=request.Size(20_000, 1)),
}
SHAPES: dict[str, Callable[[Figures], object]] = {
    "core": lambda figures: figures["text"]["translate, one event per call"]["floors"],
    "server": lambda figures: [
        figures["servers"][ASYNCIO.name][figure]
        for figure in ("burst", "paced", "first_p50", "added_p50")
    ],
    "transports": lambda figures: [
        figures[name]["stream_wire"]["bares"] for name in ("sync", "asyncio", "trio")
    ],
    "memory": lambda figures: figures["servers"][SYNC.name],
    "scaling": lambda figures: [
        figures["deltas"]["translate"][100]["cost"],
        figures["event"]["translate"][10_000]["kib"],
        figures["slices"]["translate"][7],
        figures["streams"][3],
    ],
    "request": lambda figures: [figures["shapes"]["turns"]["large"]],
}


@pytest.mark.parametrize("name", list(RUNS))
def test_a_benchmark_gives_its_figures_and_judges_them(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = RUNS[name]()
    assert SHAPES[name](figures)
    shown = capsys.readouterr().out
    assert figures["bars"]
    for bar in figures["bars"]:
        assert (bar["value"] is None) == (bar["holds"] is None)
        assert bar["what"] in shown
    assert json.loads(json.dumps(figures))


def test_a_peer_that_is_not_installed_has_a_row_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "HOME", tmp_path)
    figures = core.run(size=core.Size(20, 1, ("tool",)), peers=True)
    shown = capsys.readouterr().out
    for name in peers.IN_PROCESS:
        assert figures["tool"][name] == {"absent": "not installed"}
        assert name in shown
    assert shown.count("not installed") == len(peers.IN_PROCESS)


def test_a_peer_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "HOME", tmp_path)
    home = tmp_path / "openai"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python").symlink_to(sys.executable)
    (home / "made").touch()
    with pytest.raises(peers.Missing, match=r"failed: .*nobody"):
        peers.Peer("nobody", "openai", [])


def test_the_command_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "QUICK", request.Size(20_000, 1))
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "request", "--quick", "--json", str(file)])
    assert command.main() == 0
    figures = json.loads(file.read_text())
    assert figures["benchmark"] == "request"
    assert len(figures["bars"]) == len(figures["shapes"])


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict(what="a", value=1.5, most=1.5), "a: 1.5 x, bar at most 1.5: holds"),
        (Verdict(what="a", value=3.0, most=2.0), "a: 3 x, bar at most 2: falls short by 50%"),
        (Verdict(what="a", value=100.0, least=100.0), "a: 100 x, bar at least 100: holds"),
        (
            Verdict(what="a", value=75.0, least=100.0),
            "a: 75 x, bar at least 100: falls short by 25%",
        ),
        (Verdict(what="a", value=None, most=2.0), "a: bar at most 2 x: not measured"),
    ],
)
def test_a_verdict_says_how_far_from_its_bar(verdict: Verdict, said: str) -> None:
    assert str(verdict) == said


def test_a_ratio_is_of_rounds_not_of_times() -> None:
    # Twice as slow in each round, while a neighbour slows the last of them.
    assert of_pairs([2.0, 2.0, 20.0], [1.0, 1.0, 10.0]) == 2.0
