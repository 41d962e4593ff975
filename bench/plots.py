"""Bar charts of the figures, with the smallest and the largest round as whiskers.

`python -m bench.plots` draws those of docs/performance.md again, from its tables.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.errors import BenchError
from bench.report import PAGE, read_page
from bench.targets import OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS_COLOUR, _OTHER_COLOUR = "#1f5fa8", "#b8bec6"

CAPTION = (
    "Bars: the median of {rounds} rounds. Whiskers: the smallest and the largest round. "
    "Client, both proxies and server are on one machine."
)


class Panel(NamedTuple):
    """One diagram. `key`: the figure; `unit`: of the axis; `more`: whether a longer bar is better."""

    key: str
    title: str
    unit: str
    more: bool = False


PLOTS: Sequence[tuple[str, str, Sequence[Panel]]] = (
    (
        "throughput",
        "Throughput and its cost",
        (
            Panel("gbps_1", "Throughput, one stream", "Gbit/s", more=True),
            Panel("gbps_8", "Throughput, 8 streams", "Gbit/s", more=True),
            Panel("cpu_s_per_gb", "CPU time of both proxies", "s per GB"),
        ),
    ),
    (
        "requests",
        "Requests on open connections",
        (
            Panel("rps_c64", "Requests, 64 at a time", "requests/s", more=True),
            Panel("p99_ms_c64", "99th percentile, 64 at a time", "ms"),
            Panel("p99_ms_fixed_rate", "99th percentile, fixed rate", "ms"),
            Panel("us_per_request_c64", "CPU time of both proxies", "\N{MICRO SIGN}s per request"),
        ),
    ),
    (
        "connections",
        "New connections, one request each",
        (
            Panel("conns_per_s", "Connections, 32 at a time", "connections/s", more=True),
            Panel("conn_p99_ms", "99th percentile, 32 at a time", "ms"),
            Panel("us_per_conn", "CPU time of both proxies", "\N{MICRO SIGN}s per connection"),
        ),
    ),
    (
        "memory",
        "Memory of both proxies (PSS: shared pages are counted in parts)",
        (
            Panel("pss_idle_mb", "At rest", "MB"),
            Panel("pss_loaded_mb", "Under load", "MB"),
            Panel("kb_per_idle_conn", "An idle connection, one side", "kB"),
        ),
    ),
)


def draw_plots(result: Mapping[str, Any], directory: Path) -> list[tuple[str, Path]]:
    """Writes a PNG for each of PLOTS; their titles and paths. Raises BenchError when matplotlib is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise BenchError("matplotlib is missing: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, title, panels in PLOTS:
        figure, axes = pyplot.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.7), squeeze=False)
        for axis, panel in zip(axes[0], panels, strict=True):
            draw_panel(axis, panel, result["runs"])
        figure.suptitle(title)
        figure.text(0.5, 0.02, CAPTION.format(rounds=result["runs"]["rounds"]), ha="center", fontsize="small")
        figure.tight_layout(rect=(0, 0.05, 1, 1))
        path = directory / f"{name}.png"
        # Without the date that matplotlib would put into it, equal figures give an equal file.
        figure.savefig(path, dpi=110, metadata={"Software": None})
        pyplot.close(figure)
        drawn.append((title, path))
    return drawn


def draw_panel(axis: Axes, panel: Panel, runs: Mapping[str, Any]) -> None:
    """One diagram, from "runs" of a result."""
    key = panel.key
    rows = [(peer, figures[key]) for peer, figures in runs["medians"].items() if figures.get(key) is not None]
    rows.reverse()
    values = [value for _, value in rows]
    spreads = [runs["spread"][peer][key] for peer, _ in rows]
    low = [max(0.0, value - spread[0]) for value, spread in zip(values, spreads, strict=True)]
    high = [max(0.0, spread[1] - value) for value, spread in zip(values, spreads, strict=True)]
    places = list(range(len(rows)))
    colours = [_OURS_COLOUR if peer == OURS else _OTHER_COLOUR for peer, _ in rows]
    axis.barh(places, values, color=colours, xerr=[low, high], error_kw={"linewidth": 0.8, "capsize": 2})
    axis.set_yticks(places, [peer for peer, _ in rows])
    axis.set_title(panel.title, fontsize="medium")
    axis.set_xlabel(f"{panel.unit} ({'higher' if panel.more else 'lower'} is better)")
    axis.locator_params(axis="x", nbins=4)
    axis.set_xlim(left=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def main() -> int:
    """Draws the plots of docs/performance.md again, from the figures in its tables."""
    runs = read_page(PAGE.read_text(encoding="utf-8"))
    for _title, path in draw_plots({"runs": runs}, PAGE.with_suffix("")):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
