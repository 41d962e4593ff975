"""The figures as Markdown, and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError

OWN = ("MeshEndpoints", "MeshNodes")
_SLICES = "EndpointSlices"
_OTHERS = ("Services", "Namespaces", "NetworkPolicies", "own Pods", "own Node")


def percentile(values: Sequence[float], part: float) -> float:
    """The value that this part of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def table(result: Mapping[str, Any]) -> str:
    """Markdown."""
    sizes, churn, start = result["sizes"], result["churn"], result["start"]
    cpu, memory, peak = churn["cpu"], churn["memory_mb"], churn["peak_mb"]
    per_s = {name: count / churn["seconds"] / 1000 for name, count in churn["bytes"].items()}
    own = sum(per_s[name] for name in OWN)
    changes = churn["changes"] / churn["seconds"]
    ready = churn["ready_ms"]
    rows = [
        ("agent: from nothing until its pods are enrolled", f"{start['cold_s']:.1f} s", "10 s"),
        ("agent: the same from what it has saved", f"{start['warm_s']:.1f} s", ""),
        ("agent: CPU for these two", f"{start['cold_cpu_s']:.1f} and {start['warm_cpu_s']:.1f} s", ""),
        ("agent: memory (PSS), steady", f"{memory['agent']:.0f} MB", "120 MB"),
        ("agent: memory, peak while pods change", f"{peak['agent']:.0f} MB", ""),
        ("agent: memory, peak while it starts from nothing", f"{start['cold_peak_mb']:.0f} MB", ""),
        ("agent: CPU", f"{cpu['agent']:.1f} % of one", "5 %"),
        (f"core with {result['keys']:,} live keys: CPU", f"{cpu['core']:.1f} % of one", "10 %"),
        ("core: memory (PSS), steady", f"{memory['core']:.0f} MB", ""),
        ("core: decisions for a change", f"{churn['questions'] / max(1, churn['changes']):.2f}", ""),
        ("watch: nodeseal's own objects", f"{own:.1f} kB/s", "60 kB/s"),
        *((f"watch: {name}", f"{per_s[name]:.1f} kB/s", "") for name in OWN),
        ("watch: EndpointSlices, as the agent has them (JSON)", f"{per_s[_SLICES]:.1f} kB/s", ""),
        ("watch: EndpointSlices, as kube-proxy has them", f"{per_s[_SLICES + ', protobuf']:.1f} kB/s", ""),
        ("watch: everything else", f"{sum(per_s[name] for name in _OTHERS):.1f} kB/s", ""),
        (f"pod ready to mutual TLS, p50 of {len(ready)}", f"{percentile(ready, 0.5) / 1000:.2f} s", ""),
        ("pod ready to mutual TLS, p99", f"{percentile(ready, 0.99) / 1000:.2f} s", "2 s"),
    ]
    for name in ("kube-apiserver", "etcd"):
        rows += [
            (f"{name}: CPU, with two agents", f"{cpu[name]:.0f} % of one", ""),
            (f"{name}: memory, with two agents", f"{memory[name]:,.0f} MB", ""),
        ]
        if "twin" in result:
            rows += [
                (f"{name}: CPU, without", f"{result['twin']['cpu'][name]:.0f} % of one", ""),
                (f"{name}: memory, without", f"{result['twin']['memory_mb'][name]:,.0f} MB", ""),
            ]
    objects = ", ".join(f"{count:,} {name}" for name, count in result["filled"]["objects"].items())
    failed = sum(churn["failed"].values())
    lines = [
        f"{sizes['nodes']:,} nodes, {sizes['pods']:,} pods, {sizes['services']:,} Services: {objects}. For "
        f"{churn['seconds']:.0f} s {changes:.1f} pods a second came or went; the generator was "
        f"{churn['behind_s']:.1f} s late at most, and {failed} of its stories failed.",
        "",
        "| | measured | aim |",
        "|---|---|---|",
        *(f"| {what} | {value} | {aim and f'< {aim}'} |" for what, value, aim in rows),
    ]
    return "\n".join(lines)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Bytes of the watch, memory over time, and how long new pods take. Raises BenchError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise BenchError("matplotlib is missing: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    churn = result["churn"]
    figure, (bytes_, memory, ready) = pyplot.subplots(1, 3, figsize=(13, 3.8))
    names = [*OWN, _SLICES, f"{_SLICES}, protobuf"]
    values = [churn["bytes"][name] / churn["seconds"] / 1000 for name in names]
    bytes_.barh(names[::-1], values[::-1], color=["#b8bec6", "#1f5fa8", "#1f5fa8", "#1f5fa8"])
    bytes_.set_xlabel("kB/s")
    bytes_.set_title("Watch of one agent (grey: kube-proxy's)", fontsize="medium")
    samples = churn["samples"]
    for name, colour in (("agent", "#1f5fa8"), ("core", "#c1662f")):
        found = samples["memory_mb"][name]
        memory.plot(
            [samples["seconds"] * (number + 1) for number in range(len(found))], found, label=name, color=colour
        )
    memory.axhline(120, color="#888888", linestyle="--", linewidth=0.8, label="aim of the agent")
    memory.set_ylim(bottom=0)
    memory.set_xlabel("s")
    memory.set_ylabel("MB (PSS)")
    memory.set_title("Memory while pods change", fontsize="medium")
    memory.legend(fontsize="small", frameon=False)
    ordered = sorted(churn["ready_ms"])
    parts = [(number + 1) / len(ordered) * 100 for number in range(len(ordered))]
    ready.step([one / 1000 for one in ordered], parts, where="post", color="#1f5fa8")
    ready.axvline(2.0, color="#888888", linestyle="--", linewidth=0.8)
    ready.set_xlim(left=0)
    ready.set_ylim(0, 100)
    ready.set_xlabel("s from ready to the first mutual TLS")
    ready.set_ylabel("% of the new pods")
    ready.set_title("New pods (dashed: the aim for p99)", fontsize="medium")
    for axis in (bytes_, memory, ready):
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
