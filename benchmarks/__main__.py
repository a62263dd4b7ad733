"""Chooses a benchmark by name; `pip install 'deltawire[bench]'` has what it needs.

Figures are CPU time, which a busy neighbour changes least, and every contender takes its turn in
every round; `peers install` makes an environment for each of the others that are compared with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks import core, memory, peers, request, scaling, server, slow, transports

Options = argparse.Namespace

BENCHMARKS: Final[dict[str, Callable[[Options], dict[str, Any]]]] = {
    "core": lambda options: core.run(quick=options.quick, peers=options.peers),
    "server": lambda options: server.run(quick=options.quick, peers=options.peers),
    "transports": lambda options: transports.run(quick=options.quick),
    "memory": lambda options: memory.run(quick=options.quick, peers=options.peers),
    "scaling": lambda options: scaling.run(quick=options.quick),
    "slow": lambda options: slow.run(quick=options.quick, transport=options.transport or "all"),
    "request": lambda options: request.run(quick=options.quick),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=[*BENCHMARKS, "peers"])
    parser.add_argument("action", nargs="?", choices=["install"], help="of peers")
    parser.add_argument("--peers", action="store_true", help="measure the others as well")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller inputs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument(
        "--plot", type=Path, metavar="DIR", help="draw the figures of server or scaling into DIR"
    )
    parser.add_argument(
        "--transport", choices=[*slow.TRANSPORTS, "all"], help="of slow: of which (default: all)"
    )
    options = parser.parse_args()
    if options.transport and options.what != "slow":
        parser.error("--transport is for slow")
    if (options.what == "peers") != (options.action == "install"):
        parser.error("it is `peers install`, and only that")
    if options.what == "peers":
        return peers.install()
    if options.plot:
        # Before the minutes that the figures take.
        from benchmarks import plots
    figures = {"benchmark": options.what, **BENCHMARKS[options.what](options)}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.plot:
        for file in plots.draw(figures, options.plot):
            print(file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
