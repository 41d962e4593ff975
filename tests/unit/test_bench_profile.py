"""From what perf prints to the texts and the file for speedscope."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from bench import profile, sampler
from bench.errors import BenchError
from bench.instrumented import Instrumented, fold_callgrind
from bench.profile_report import COLUMNS, Profile, load_text, speedscope, terminal_table, write_flame_graphs, write_load
from bench.stacks import (
    GROUPS,
    Folded,
    Frame,
    core_functions,
    fold_script,
    group_of,
    group_shares,
    top_symbols,
)

RECORDED = (Path(__file__).parent / "golden" / "perf-script.txt").read_text()
SAMPLES = 13

CORE, LIBSSL, LIBCRYPTO = "_core.abi3.so", "libssl.so.3", "libcrypto.so.3"


@pytest.fixture(scope="module")
def folded() -> Folded:
    return fold_script(RECORDED, {8954: "client side", 8956: "server side"}.__getitem__)


def made_profile(folded: Folded, load: str = "down_1") -> Profile:
    return Profile(load, "nodeseal", "1.23 s/GB", folded, "samples", ("a machine", "a <date> & more"))


def test_every_sample_is_folded(folded: Folded) -> None:
    assert folded.total() == SAMPLES
    assert {stack[0].symbol for stack in folded} == {"client side", "server side"}


def test_stack_begins_at_the_worker_and_ends_in_the_function_that_ran(folded: Folded) -> None:
    for stack in folded:
        assert stack[1] == Frame("worker_main", CORE)
    receive = next(stack for stack in folded if stack[-1].symbol == "_copy_to_iter")
    symbols = [frame.symbol for frame in receive]
    assert symbols[2:5] == ["tunnel_read", "__libc_recv", "__x64_sys_recvfrom"]


def test_functions_without_a_name_fold_into_their_module(folded: Folded) -> None:
    seal = next(stack for stack in folded if stack[-1].module == LIBCRYPTO and not stack[-1].named)
    assert [frame.symbol for frame in seal[-5:]] == [
        "tls_write", "SSL_write_ex", "[libssl.so.3]", "EVP_EncryptUpdate", "[libcrypto.so.3]",
    ]  # fmt: skip


def test_sample_in_the_kernels_entry_is_kept() -> None:
    folded = fold_script(
        "worker 1/2 \n\tffffffff821ef666 do_syscall_64 ([kernel.kallsyms])\n\t 10 send (/lib/libc.so.6)\n"
    )
    assert list(folded) == [(Frame("send", "libc.so.6"), Frame("do_syscall_64", "[kernel.kallsyms]"))]


def test_sample_without_a_known_frame_still_counts() -> None:
    folded = fold_script("worker 1/2 \n\tffffffffffffffff [unknown] ([unknown])\n")
    assert folded.total() == 1


def test_command_name_with_blanks_is_a_sample() -> None:
    assert fold_script("a name (x) 1/2 \n\t 10 send (/lib/libc.so.6)\n").total() == 1


@pytest.mark.parametrize(
    ("module", "group"),
    [
        ("[kernel.kallsyms]", "kernel"),
        ("[br_netfilter]", "kernel"),
        ("bpf_prog_eb5698ad08261d8c_steer_ingress", "kernel"),
        ("[vdso]", "libc"),
        ("libc.so.6", "libc"),
        ("ld-linux-x86-64.so.2", "libc"),
        (LIBCRYPTO, "libcrypto"),
        (LIBSSL, "libssl"),
        ("libnghttp2.so.14.24.1", "nghttp2"),
        (CORE, "core"),
        ("python3.11", "python"),
        ("envoy", "other"),
        ("[unknown]", "other"),
    ],
)
def test_group_of_a_module(module: str, group: str) -> None:
    assert group_of(module) == group


def test_shares_add_up_to_one(folded: Folded) -> None:
    shares = group_shares(folded)
    assert tuple(shares) == GROUPS
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["libcrypto"] == pytest.approx(3 / SAMPLES)


def test_shares_of_nothing_are_zero() -> None:
    assert set(group_shares(Counter()).values()) == {0.0}


def test_top_symbols_say_around_which_function_an_unnamed_one_is(folded: Folded) -> None:
    symbols = top_symbols(folded, 100)
    assert sum(entry.samples for entry in symbols) == SAMPLES
    assert (1, Frame("[libcrypto.so.3]", LIBCRYPTO), "EVP_EncryptUpdate") in symbols
    assert (2, Frame("[libssl.so.3]", LIBSSL), "SSL_write_ex") in symbols


def test_core_functions_with_what_they_called(folded: Folded) -> None:
    functions = {name: (samples, dict(callees)) for name, samples, callees in core_functions(folded, 100)}
    assert functions["tunnel_send"] == (2, {"__send": 1, "-": 1})
    assert functions["tunnel_read"] == (1, {"__libc_recv": 1})
    assert sum(samples for samples, _ in functions.values()) == SAMPLES


def test_speedscopes_file_holds_every_load_and_sample(folded: Folded) -> None:
    found = speedscope([made_profile(folded, "down_1"), made_profile(folded, "mix")])
    frames = found["shared"]["frames"]
    assert len(frames) == len({(frame["name"], frame["file"]) for frame in frames})
    assert [load["name"].split(":")[0] for load in found["profiles"]] == ["nodeseal, down_1", "nodeseal, mix"]
    for load in found["profiles"]:
        stacks = [tuple(frames[number]["name"] for number in stack) for stack in load["samples"]]
        assert stacks == [tuple(frame.symbol for frame in stack) for stack in folded]
        assert load["weights"] == list(folded.values())
        assert (load["startValue"], load["endValue"], load["unit"]) == (0, SAMPLES, "none")


def test_speedscope_colours_a_frame_by_its_group(folded: Folded) -> None:
    files = {frame["name"]: frame["file"] for frame in speedscope([made_profile(folded)])["shared"]["frames"]}
    assert files["worker_main"] == f"core: {CORE}"
    assert files["_copy_to_iter"] == "kernel: [kernel.kallsyms]"
    assert files["client side"] == ""


def test_speedscopes_file_of_nothing_is_still_one() -> None:
    found = speedscope([made_profile(Counter())])
    assert (found["shared"]["frames"], found["profiles"][0]["samples"]) == ([], [])


def test_text_of_a_load(folded: Folded) -> None:
    text = load_text(made_profile(folded))
    assert "nodeseal, down_1: 1.23 s/GB, 13 samples" in text
    assert "[libcrypto.so.3] under EVP_EncryptUpdate" in text
    assert re.search(r"15\.4%  tunnel_send +(?:__send 7\.7%|itself 7\.7%)", text)


def test_table_fits_a_terminal(folded: Folded) -> None:
    lines = terminal_table([made_profile(folded, "connections_c32")]).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert len({len(line) for line in lines}) == 1


def test_shares_of_the_table_cover_every_group() -> None:
    assert sorted(group for _, groups in COLUMNS for group in groups) == sorted(GROUPS)


def test_files_of_a_profile(folded: Folded, tmp_path: Path) -> None:
    profiles = [made_profile(folded, "down_1"), made_profile(folded, "mix")]
    for made in profiles:
        write_load(made, tmp_path / "new")
    path = write_flame_graphs(profiles, tmp_path / "new")
    assert json.loads(path.read_text()) == speedscope(profiles)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "profile.speedscope.json",
        *(f"{load}.{kind}" for load in ("down_1", "mix") for kind in ("txt", "folded")),
    }
    stacks = (tmp_path / "new" / "mix.folded").read_text().splitlines()
    assert sum(int(line.rpartition(" ")[2]) for line in stacks) == SAMPLES
    assert "server side;worker_main;tunnel_flush;tunnel_send;__send 1" in stacks


def test_unknown_load_and_peer_are_named() -> None:
    with pytest.raises(BenchError, match=r"--only sideways: there is no such load; there are requests_c1, "):
        profile.choose_loads("down_1,sideways")
    with pytest.raises(BenchError, match=r"--peer direct: there is no such peer; there are relay, nodeseal"):
        profile.choose_peer("direct", [])


def test_usual_loads_exist() -> None:
    assert [load.name for load in profile.choose_loads(None)] == list(profile.USUAL_LOADS)


def test_missing_perf_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sampler.perf_missing() == "perf is missing: apt-get install linux-perf"


CALLGRIND = """# callgrind format
positions: line
events: Ir

ob=(1) /checkout/_core.abi3.so
fl=(1) tls.c
fn=(1) tls_read'tunnel_read'worker_main
10 5
cob=(2) /usr/lib/libssl.so.3
cfi=(2) ???
cfn=(2) SSL_read_ex'tls_read'tunnel_read'worker_main
calls=1 0
+2 90
* 2

fn=(3) tunnel_read'worker_main
1 1
fn=(4) worker_main
1 1

ob=(2)
fl=(2)
fn=(2)
0 20
cfn=(5) 0x000000000004fee0'SSL_read_ex'tls_read'tunnel_read'worker_main
calls=3 0
0 70
fn=(5)
0 70

ob=(3) ???
fn=(6) 0x1000'SSL_read_ex'tls_read'tunnel_read'worker_main
0 4
totals: 103
"""


def test_callgrinds_contexts_are_stacks() -> None:
    core = tuple(Frame(symbol, CORE) for symbol in ("worker_main", "tunnel_read", "tls_read"))
    read = (*core, Frame("SSL_read_ex", LIBSSL))
    assert fold_callgrind(CALLGRIND) == {
        core[:1]: 1,
        core[:2]: 1,
        core: 7,
        read: 24,
        (*read, Frame("[libssl.so.3]", LIBSSL)): 70,
    }


def test_environment_is_as_before_after_instrumented_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    with Instrumented(tmp_path).cores():
        assert os.environ["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/somewhere"
        printed = subprocess.run(
            [sys.executable, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True, check=True
        ).stdout
        assert printed.strip() == str(tmp_path / "python")
        # What is not a core runs as ever.
        done = subprocess.run([str(tmp_path / "python"), "-c", "print(6 * 7)"], capture_output=True, check=True)
        assert done.stdout == b"42\n"
    assert os.environ["PYTHONPATH"] == "/somewhere"
    assert "NODESEAL_PROFILE_EXECUTABLE" not in os.environ


def choosing(monkeypatch: pytest.MonkeyPatch, *, perf: str | None, callgrind: str | None) -> None:
    monkeypatch.setattr(profile, "perf_missing", lambda: perf)
    monkeypatch.setattr(profile, "callgrind_missing", lambda: callgrind)


def test_callgrind_is_used_where_perf_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = profile.choose_peer("nodeseal", [])
    choosing(monkeypatch, perf=None, callgrind="no valgrind")
    assert profile.choose_callgrind(peer, asked=False) is False
    choosing(monkeypatch, perf="no perf", callgrind=None)
    assert profile.choose_callgrind(peer, asked=False) is True
    assert "no perf; instead callgrind counts" in capsys.readouterr().err


def test_neither_perf_nor_callgrind_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    choosing(monkeypatch, perf="no perf", callgrind="no valgrind")
    with pytest.raises(BenchError, match=r"^no perf; and no valgrind$"):
        profile.choose_callgrind(profile.choose_peer("nodeseal", []), asked=False)


def test_callgrind_is_not_for_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    choosing(monkeypatch, perf="no perf", callgrind=None)
    with pytest.raises(BenchError, match="callgrind is for nodeseal alone, not for relay"):
        profile.choose_callgrind(profile.choose_peer("relay", []), asked=False)
