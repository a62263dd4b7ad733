"""Chooses a benchmark by name."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import core, linear, request, slow, transports

BENCHMARKS = {
    "core": core.run,
    "linear": linear.run,
    "request": request.run,
    "slow": slow.run,
    "transports": transports.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=list(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller inputs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument(
        "--transport", choices=[*slow.TRANSPORTS, "all"], help="of slow: of which (default: all)"
    )
    options = parser.parse_args()
    if options.transport and options.what != "slow":
        parser.error("--transport is for slow")
    if options.transport:
        figures = slow.run(quick=options.quick, transport=options.transport)
    else:
        figures = BENCHMARKS[options.what](quick=options.quick)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
