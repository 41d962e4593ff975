"""From the visits of a run to bench.json, its tables and its page."""

from __future__ import annotations

import copy
import json
from typing import Any
from unittest.mock import MagicMock

import pytest
from bench.errors import BenchError
from bench.figures import SUMMARY, figures_of, medians, spreads, summarise
from bench.plots import CAPTION, PLOTS, Panel, draw_panel
from bench.report import BEGIN, END, PAGE, markdown_report, read_page, replace_between_markers, terminal_report
from bench.targets import targets

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "abc",
    "cpus": 2,
    "cpu": "a CPU",
    "memory_gb": 8,
    "kernel": "6.1",
    "distribution": "Debian",
    "congestion_control": "reno",
    "versions": {"nodeseal": "0.1.0"},
    "threads": {"nodeseal": 2},
}
SETTINGS = {"rounds": 1, "warmup": 1.0, "seconds": 2.0, "quick": False}
LATENCY = {"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99.9": 4.0}


def load(**values: Any) -> dict[str, Any]:
    return {
        "seconds": 2.0,
        "errors": 0,
        "cpu_s": {"total": 3.0, "user": 1.0, "system": 2.0},
        "switches": {"voluntary": 900, "involuntary": 100},
        "pss_mb": 30.0,
        **values,
    }


def visit(peer: str = "nodeseal", factor: float = 1.0) -> dict[str, Any]:
    requests = load(requests_per_s=50_000.0 * factor, latency_ms=LATENCY, unfinished=0)
    connections = load(connections_per_s=10_000.0 * factor, connection_latency_ms=LATENCY)
    down, up = load(down_gbps=10.0 * factor, up_gbps=0.0), load(down_gbps=0.0, up_gbps=6.0 * factor)
    return {
        "peer": peer,
        "proxied": peer != "direct",
        "memory": {"idle_mb": 20.0, "helpers_mb": 60.0},
        "holding": {"connections": 1000, "kb_per_connection": 2.5, "cpu_ms_per_s": 1.0},
        "loads": {
            "requests_c1": requests,
            "requests_c64": requests,
            "requests_c512": requests,
            "fixed_rate_c64": requests,
            "connections_c32": connections,
            "connections_c1": connections,
            "down_1": down,
            "up_1": up,
            "down_8": down,
            "up_8": up,
            "mix": down | connections | requests,
        },
    }


def test_throughput_is_the_mean_of_both_directions() -> None:
    figures = figures_of(visit())
    assert (figures["gbps_1"], figures["gbps_1_down"], figures["gbps_1_up"]) == (8.0, 10.0, 6.0)


def test_cpu_per_gigabyte_counts_both_directions() -> None:
    # 16 Gbit/s in all for 2 s are 4 GB, for which 6 s of CPU time were spent.
    assert figures_of(visit())["cpu_s_per_gb"] == pytest.approx(1.5)


def test_cpu_per_request_is_in_microseconds() -> None:
    figures = figures_of(visit())
    assert figures["us_per_request_c64"] == pytest.approx(30.0)
    assert figures["user_us_per_request_c64"] == pytest.approx(10.0)
    assert figures["switches_per_request_c64"] == pytest.approx(0.01)


def test_loaded_memory_is_the_largest_of_all_loads() -> None:
    one = visit()
    one["loads"]["up_8"] = load(down_gbps=0.0, up_gbps=1.0, pss_mb=77.0)
    assert figures_of(one)["pss_loaded_mb"] == 77.0


def test_no_proxy_has_no_cost() -> None:
    figures = figures_of(visit("direct"))
    assert figures["rps_c64"] == 50_000
    names = ("cpu_s_per_gb", "us_per_request_c64", "pss_idle_mb", "pss_loaded_mb")
    assert [figures[name] for name in names] == [None] * 4


def test_medians_are_taken_figure_by_figure() -> None:
    assert medians([{"a": 1.0, "b": 9.0}, {"a": 3.0, "b": 7.0}, {"a": 2.0, "b": None}]) == {"a": 2.0, "b": 8.0}


def test_spread_is_the_smallest_and_the_largest() -> None:
    assert spreads([{"a": 2.0}, {"a": 1.0}, {"a": 3.0}, {"a": None}]) == {"a": [1.0, 3.0]}


def test_figure_that_no_round_has_is_none() -> None:
    assert medians([{"a": None}]) == {"a": None}
    assert spreads([{"a": None}]) == {"a": None}


def test_json_has_the_summary_of_each_peer() -> None:
    visits = [visit(), visit("direct"), visit(factor=3.0), visit("direct"), visit(factor=2.0), visit("direct")]
    result = summarise(visits, MACHINE, SETTINGS, [])
    assert list(result) == ["peers", "runs", "machine"]
    assert {peer: tuple(figures) for peer, figures in result["peers"].items()} == {
        "nodeseal": SUMMARY,
        "direct": SUMMARY,
    }
    assert result["peers"]["nodeseal"]["rps_c64"] == 100_000
    assert result["runs"]["spread"]["nodeseal"]["rps_c64"] == [50_000, 150_000]
    assert len(result["runs"]["visits"]) == 6


def test_result_survives_json() -> None:
    result = summarise([visit(), visit("direct")], MACHINE, SETTINGS, ["something"])
    assert json.loads(json.dumps(result)) == result


def test_visit_that_lacks_a_load_gives_the_other_figures() -> None:
    one = visit()
    del one["loads"]["mix"], one["loads"]["down_8"]
    figures = figures_of(one)
    assert "gbps_8" not in figures
    assert figures["gbps_1"] == 8.0


def test_tables_show_every_peer_and_what_is_missing() -> None:
    result = summarise([visit(), visit("direct")], MACHINE, SETTINGS, ["round 1/1 haproxy: ended"])
    text, page = terminal_report(result), markdown_report(result, [("Throughput", "performance/throughput.png")])
    assert "direct" in text
    assert "not measured" in text
    assert "![Throughput](performance/throughput.png)" in page
    assert "* round 1/1 haproxy: ended" in page


def test_target_is_a_ratio_to_envoy() -> None:
    result = summarise([visit(factor=2.0), visit("envoy-hbone"), visit("direct", factor=9.0)], MACHINE, SETTINGS, [])
    found = {target.name: target for target in targets(result["runs"]["medians"])}
    assert found["Gbit/s, one stream"].ratio == pytest.approx(2.0)
    assert found["Gbit/s, one stream"].verdict == "reached"
    assert found["p99, c=64"].verdict == "missed"
    assert found["added latency, c=1"].verdict == "not measured"


def test_added_latency_is_over_direct() -> None:
    ours, measure, direct = ({"p50_ms_c1": value} for value in (0.06, 0.08, 0.02))
    found = targets({"nodeseal": ours, "envoy-hbone": measure, "direct": direct})
    assert found[4].ratio == pytest.approx(2 / 3)


def test_page_keeps_what_is_around_the_figures() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = replace_between_markers(page, "new\n")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert replace_between_markers(once, "new\n") == once


@pytest.mark.parametrize("page", ["", BEGIN, END + BEGIN, BEGIN + END + END])
def test_page_without_markers_is_refused(page: str) -> None:
    with pytest.raises(BenchError, match="once each"):
        replace_between_markers(page, "new")


def test_summarise_leaves_the_visits_alone() -> None:
    visits = [visit()]
    before = copy.deepcopy(visits)
    summarise(visits, MACHINE, SETTINGS, [])
    assert visits == before


def test_page_tells_the_figures_that_it_was_made_of() -> None:
    visits = [visit(), visit("direct"), visit(factor=3.0), visit("direct"), visit(factor=2.0), visit("direct")]
    runs = summarise(visits, MACHINE, {**SETTINGS, "rounds": 3}, [])["runs"]
    found = read_page(markdown_report({"runs": runs, "machine": MACHINE}, []))
    assert found["rounds"] == 3
    assert list(found["medians"]) == list(runs["medians"])
    for peer, figures in found["medians"].items():
        for name, value in figures.items():
            measured = runs["medians"][peer].get(name)
            if measured is None:
                assert value is None
                continue
            # Rounded, as they are in the page.
            assert value == pytest.approx(measured, 0.05, 0.001)
            assert found["spread"][peer][name] == pytest.approx(
                runs["spread"][peer].get(name, [measured] * 2), 0.05, 0.001
            )


def test_page_without_a_table_is_refused() -> None:
    with pytest.raises(BenchError, match="the table 'Throughput"):
        read_page("5 rounds, 2 s for each load")


@pytest.mark.parametrize("panel", [panel for _name, _title, panels in PLOTS for panel in panels])
def test_plot_says_its_unit_and_which_way_is_better(panel: Panel) -> None:
    axis = MagicMock()
    draw_panel(axis, panel, read_page(PAGE.read_text()))
    better = "higher" if panel.key in ("gbps_1", "gbps_8", "rps_c64", "conns_per_s") else "lower"
    axis.set_xlabel.assert_called_once_with(f"{panel.unit} ({better} is better)")
    peers = axis.set_yticks.call_args.args[1]
    assert "nodeseal" in peers
    assert len(axis.barh.call_args.kwargs["xerr"][0]) == len(peers)
    assert "Whiskers: the smallest and the largest round." in CAPTION
