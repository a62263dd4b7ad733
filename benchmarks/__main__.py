"""Chooses a benchmark by name."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import core, linear, request, transports

BENCHMARKS = {
    "core": core.run,
    "linear": linear.run,
    "request": request.run,
    "transports": transports.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=list(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller inputs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args()
    figures = BENCHMARKS[options.what](quick=options.quick)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
