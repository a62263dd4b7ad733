"""Draws the figures of `server` and `scaling`, with matplotlib."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

pyplot: Final[Any] = importlib.import_module("matplotlib.pyplot")

Figures = Mapping[str, Any]


def draw(figures: Figures, folder: Path) -> list[Path]:
    """Draw what there is to draw of one benchmark; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, plot in PLOTS.get(figures["benchmark"], {}).items():
        figure, axes = pyplot.subplots(figsize=(7, 4.5))
        plot(axes, figures)
        axes.grid(visible=True, alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        file = folder / f"{name}.svg"
        figure.tight_layout()
        figure.savefig(file)
        pyplot.close(figure)
        files.append(file)
    return files


def _line(axes: Any, costs: Mapping[int, list[float]], label: str | None = None) -> None:
    medians = [statistics.median(each) for each in costs.values()]
    axes.plot(list(costs), medians, marker="o", label=label)


def _slices(axes: Any, figures: Figures) -> None:
    for method, costs in figures["slices"].items():
        _line(axes, costs, method)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="bytes of a slice", ylabel="us of CPU per event")
    axes.set(title="Core: cost against slice size")


def _lengths(axes: Any, figures: Figures) -> None:
    for method, sizes in figures["deltas"].items():
        _line(axes, {size: each["cost"] for size, each in sizes.items()}, method)
    axes.set(xscale="log", ylim=(0, None))
    axes.set(xlabel="deltas in the stream", ylabel="us of CPU per event")
    axes.set(title="Core: cost against stream length, 16 KiB pieces")


def _streams(axes: Any, figures: Figures) -> None:
    _line(axes, figures["streams"])
    axes.set(xscale="log", ylim=(0, None))
    axes.set(xlabel="open streams", ylabel="us of server CPU per event")
    axes.set(title="Server on asyncio: cost against open streams")


def _first(axes: Any, figures: Figures) -> None:
    for name, each in figures["servers"].items():
        first = each["first"]
        axes.plot(first, [(at + 1) / len(first) for at in range(len(first))], label=name)
    axes.set(xscale="log", ylim=(0, 1))
    axes.set(xlabel="ms from request to first delta", ylabel="part of the streams")
    axes.set(title="Paced load: time to the first delta")


def _server_cost(axes: Any, figures: Figures) -> None:
    each = {name: of["burst"] for name, of in figures["servers"].items() if of["burst"]}
    axes.barh(list(each), [statistics.median(burst) for burst in each.values()])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="us of server CPU per event", title="Burst")


PLOTS: Final[Mapping[str, Mapping[str, Callable[[Any, Figures], None]]]] = {
    "scaling": {
        "cost-by-slice": _slices,
        "cost-by-length": _lengths,
        "cost-by-streams": _streams,
    },
    "server": {"first-delta": _first, "cost-by-server": _server_cost},
}
