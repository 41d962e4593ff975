"""The command line about itself: help, examples, version, completion; and output that cannot be written."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nodeseal import __version__
from nodeseal.cli import tree
from nodeseal.cli.completion import script
from nodeseal.cli.examples import EXAMPLES
from nodeseal.cli.main import main, parser

NODESEAL = f"{sys.executable} -m nodeseal"
COMMANDS = [path for path, _one in tree.walk(parser())]
LINES = [(path, line) for path in COMMANDS for line, _what in EXAMPLES.get(path, ())]


def shell(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_examples_in_its_help(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*path.split(), "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert "\nexamples:\n  nodeseal " in out
    assert all(f"  {line}  " in out for line, _what in EXAMPLES[path])
    # And `help` says the same.
    assert main(["help", *path.split()]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("path", COMMANDS)
def test_help_fits_into_a_hundred_columns(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["help", *path.split()]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 100] == []


def test_examples_are_for_commands_that_there_are() -> None:
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize(("path", "line"), LINES)
def test_every_example_is_a_command_line_of_its_command(path: str, line: str) -> None:
    words = shlex.split(line)
    words = words[: next((at for at, word in enumerate(words) if word in ("|", ">")), len(words))]
    assert words[: 1 + len(path.split())] == ["nodeseal", *path.split()]
    assert parser().parse_args(words[1:]).run


@pytest.mark.parametrize("path", [path for path, one in tree.walk(parser()) if tree.children(one)])
def test_command_without_what_it_needs_prints_its_help(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(path.split()) == 2
    out = capsys.readouterr()
    assert out.out.startswith(f"usage: nodeseal {path}".strip())
    assert "examples:" in out.out
    assert out.err == ""


def test_help_of_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "lab", "upp"]) == 2
    assert main(["help", "status", "x"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("nodeseal: unknown command 'upp' of 'nodeseal lab': there are up, exec, status, ")
    assert second == "nodeseal: unknown command 'x' of 'nodeseal status': it has no commands below it"


def test_unknown_command_is_told_of_those_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["stats"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "invalid choice: 'stats' (choose from 'status', 'connections', 'agent', " in error
    assert "'core'" not in error


def test_version_as_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"nodeseal {__version__}\n")


@pytest.mark.parametrize("arguments", ["version", "--version", "--help", "help", "check --help", "completion bash", ""])
def test_full_disk_is_one_line_and_a_status(arguments: str) -> None:
    done = shell(f"{NODESEAL} {arguments} > /dev/full")
    assert (done.returncode, done.stderr) == (1, "nodeseal: cannot write to standard output: No space left on device\n")


def test_closed_output_is_one_line_and_a_status() -> None:
    done = shell(f"{NODESEAL} version >&-")
    assert (done.returncode, done.stderr) == (1, "nodeseal: cannot write to standard output: it is closed\n")


def test_name_that_the_locale_cannot_say_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "日.yaml").write_text("nosuch: 1\n")
    done = shell(f"PYTHONIOENCODING=latin-1 {NODESEAL} mesh check {tmp_path}")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{tmp_path}/\\u65e5.yaml:1: nosuch: expected only ")


@pytest.mark.parametrize("arguments", ["version", "help", "completion bash"])
def test_reader_that_went_away_is_not_worth_a_word(arguments: str) -> None:
    done = shell(f"{{ sleep 0.5; {NODESEAL} {arguments}; echo $? >&2; }} | true")
    assert done.stderr == "1\n"


def test_error_stands_in_the_json_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = f"no agent runs for {tmp_path}; start it with 'nodeseal agent --config FILE'"
    expected = {
        "status": {"nodes": [], "errors": [gone]},
        "connections": {"connections": [], "refused": [], "errors": [gone]},
        "upgrade-core": {"nodes": [], "errors": [gone]},
    }
    for command, answer in expected.items():
        assert main([command, "--run-dir", str(tmp_path), "-o", "json"]) == 1
        out = capsys.readouterr()
        assert json.loads(out.out) == answer
        assert out.err == f"nodeseal: {gone}\n"


def test_command_that_fails_as_a_whole_says_so_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("node: node1\nmesh: m\nworkers: 0\n")
    assert main(["check", "--config", str(config), "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["errors"] == [
        f"{config}:1: ca: expected a path, found nothing",
        f"{config}:3: workers: expected a number of threads from 1 to 64, found the number 0",
    ]
    assert main(["lab", "status", "--name", "nosuch", "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["errors"] == [
        "no lab named 'nosuch' is up; start it with: nodeseal lab up --name nosuch"
    ]


class TestCompletion:
    def completed(self, tmp_path: Path, line: str) -> list[str]:
        """What bash would offer behind a line."""
        (tmp_path / "completion").write_text(script(parser()))
        words = [*line.split(" ")]
        offer = shell(
            f"source {tmp_path}/completion; COMP_WORDS=({' '.join(map(shlex.quote, words))}); "
            f"COMP_CWORD={len(words) - 1}; _nodeseal; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        assert offer.stderr == ""
        return offer.stdout.split()

    @pytest.mark.parametrize(
        ("line", "offered"),
        [
            ("nodeseal sta", ["status"]),
            ("nodeseal up", ["upgrade-core"]),
            ("nodeseal lab u", ["up", "unenrol"]),
            ("nodeseal lab up --no", ["--nodes", "--node-rules", "--not-enrolled"]),
            ("nodeseal lab up --node-rules kube", ["kube-proxy-iptables", "kube-proxy-nftables"]),
            ("nodeseal lab mode siem ", ["permissive", "strict", "-h", "--help", "--name", "-o", "--output"]),
            ("nodeseal status -o ", ["table", "json"]),
            ("nodeseal status --output j", ["json"]),
            ("nodeseal cleanup --a", ["--all"]),
            ("nodeseal completion b", ["bash"]),
            ("nodeseal help c", ["connections", "check", "cleanup", "ca", "completion"]),
            # Left to files, and to what only the user knows.
            ("nodeseal check --config ", []),
            ("nodeseal lab up --name ", []),
            ("nodeseal mesh check etc", []),
            ("nodeseal nosuch x", []),
            # A value that is also a command's name.
            ("nodeseal lab exec status --na", ["--name"]),
        ],
    )
    def test_offers_what_may_stand_there(self, tmp_path: Path, line: str, offered: list[str]) -> None:
        assert self.completed(tmp_path, line) == offered

    def test_every_command_and_option_is_offered(self, tmp_path: Path) -> None:
        text = script(parser())
        for path, one in tree.walk(parser()):
            for action in one._option_string_actions:
                assert action in text
            assert path in text
        assert " core)" not in text

    def test_is_understood_by_bash(self) -> None:
        done = shell(f"source <({NODESEAL} completion bash) && complete -p nodeseal")
        assert done.stdout == "complete -o default -F _nodeseal nodeseal\n"
