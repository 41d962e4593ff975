"""Bar charts of the figures, with the smallest and the largest round as whiskers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.targets import OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS_COLOUR, _OTHER_COLOUR = "#1f5fa8", "#b8bec6"

Panel = tuple[str, str]
PLOTS: Sequence[tuple[str, str, Sequence[Panel]]] = (
    (
        "throughput",
        "Throughput and its cost",
        (
            ("gbps_1", "Gbit/s, one stream"),
            ("gbps_8", "Gbit/s, 8 streams"),
            ("cpu_s_per_gb", "CPU s per GB, both proxies"),
        ),
    ),
    (
        "requests",
        "Requests on open connections",
        (
            ("rps_c64", "requests/s, c=64"),
            ("p99_ms_c64", "p99 ms, c=64"),
            ("p99_ms_fixed_rate", "p99 ms at a fixed rate"),
            ("us_per_request_c64", "CPU us per request"),
        ),
    ),
    (
        "connections",
        "New connections",
        (
            ("conns_per_s", "connections/s, c=32"),
            ("conn_p99_ms", "p99 ms of a connection"),
            ("us_per_conn", "CPU us per connection"),
        ),
    ),
    (
        "memory",
        "Memory of both proxies",
        (
            ("pss_idle_mb", "PSS idle, MB"),
            ("pss_loaded_mb", "PSS loaded, MB"),
            ("kb_per_idle_conn", "kB per idle connection and side"),
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
        figure, axes = pyplot.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.2), squeeze=False)
        for axis, (key, label) in zip(axes[0], panels, strict=True):
            _draw(axis, key, label, result["runs"])
        figure.suptitle(title)
        figure.tight_layout()
        path = directory / f"{name}.png"
        # Without the date that matplotlib would put into it, equal figures give an equal file.
        figure.savefig(path, dpi=110, metadata={"Software": None})
        pyplot.close(figure)
        drawn.append((title, path))
    return drawn


def _draw(axis: Axes, key: str, label: str, runs: Mapping[str, Any]) -> None:
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
    axis.set_title(label, fontsize="medium")
    axis.set_xlim(left=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
