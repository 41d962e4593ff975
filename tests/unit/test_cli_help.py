"""The command line about itself: help, examples, version, completion; and output that cannot be written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nodeseal import __version__
from nodeseal.cli import manual, root
from nodeseal.cli.examples import EXAMPLES
from nodeseal.cli.main import main
from nodeseal.cli.tree import Command, Group, path_of, walk
from support.command_line import parsed

NODESEAL = f"{sys.executable} -m nodeseal"
CONTEXTS = {path_of(ctx): ctx for ctx in walk(root.context())}
COMMANDS = list(CONTEXTS)
GROUPS = [path for path, ctx in CONTEXTS.items() if isinstance(ctx.command, Group)]
LINES = [(path, line) for path in COMMANDS for line, _what in EXAMPLES.get(path, ())]


def shell(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_examples_in_its_help(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert "\nExamples:\n  nodeseal " in out
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
    assert path_of(parsed(*words[1:])).startswith(path)


@pytest.mark.parametrize("path", GROUPS)
def test_command_without_what_it_needs_prints_its_help(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(path.split()) == 2
    out = capsys.readouterr()
    assert out.out.startswith(f"Usage: nodeseal {path}".strip())
    assert "Examples:" in out.out
    assert out.err == ""


def test_help_of_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "lab", "upp"]) == 2
    assert main(["help", "status", "x"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("nodeseal: unknown command 'upp' of 'nodeseal lab': there are up, exec, status, ")
    assert second == "nodeseal: unknown command 'x' of 'nodeseal status': it has no commands below it"


def test_unknown_command_is_told_of_those_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nodeseal: unknown command 'stats' of 'nodeseal': there are status, connections, agent, ")
    assert "core," not in error.replace("upgrade-core", "")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (
            "lab exec --nme x shipper -- ls",
            "no such option '--nme'. Did you mean '--name'? usage: nodeseal lab exec [OPTIONS] POD -- CMD..., see "
            "'nodeseal lab exec --help'",
        ),
        (
            "ca sign ca",
            "missing argument 'REQUEST'; usage: nodeseal ca sign [OPTIONS] DIR REQUEST FILE, see 'nodeseal ca sign "
            "--help'",
        ),
        (
            "agent",
            "missing option '--config'; usage: nodeseal agent [OPTIONS], see 'nodeseal agent --help'",
        ),
        (
            "status -o xml",
            "invalid value for '-o' / '--output': 'xml' is not one of 'table', 'json'; usage: nodeseal status "
            "[OPTIONS], see 'nodeseal status --help'",
        ),
        (
            "cleanup --all --run-dir /run/nodeseal",
            "--run-dir names one node and --all means every one: say 'nodeseal cleanup' with one of them",
        ),
    ],
)
def test_wrong_use_is_one_line_with_the_usage_of_that_command(
    line: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr() == ("", f"nodeseal: {error}\n")


def test_help_imports_nothing_that_only_commands_need() -> None:
    code = (
        "import sys\nfrom nodeseal.cli.main import main\nmain(['--help'])\n"
        "light = ['errors', 'examples', 'main', 'options', 'output', 'root', 'tree']\n"
        "mine = {f'nodeseal.cli.{name}' for name in light} | {'nodeseal', 'nodeseal.cli'}\n"
        "heavy = {'asyncio', 'cryptography', 'msgspec', 'pyroute2', 'socket', 'subprocess', 'yaml', 'nodeseal_lab'}\n"
        "print(sorted(m for m in sys.modules if m in heavy or m.startswith('nodeseal') and m not in mine))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


def test_version_as_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nodeseal {__version__}\n"


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
        f"{config}:1: ca: expected the path of a CA directory, or a mapping with one of service, kubernetes, "
        "delivered and workload_api, found nothing",
        f"{config}:3: workers: expected a number of threads from 1 to 64, found the number 0",
    ]
    assert main(["lab", "status", "--name", "nosuch", "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["errors"] == [
        "no lab named 'nosuch' is up; start it with: nodeseal lab up --name nosuch"
    ]


def offered(line: str, shell_name: str = "bash") -> list[str]:
    """What a shell would offer behind a line: for each its kind and itself, as that shell is told."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "fish": {"COMP_WORDS": " ".join(words[:-1]), "COMP_CWORD": words[-1]},
    }[shell_name]
    done = subprocess.run(
        [sys.executable, "-m", "nodeseal"],
        env={**os.environ, **asked, "_NODESEAL_COMPLETE": f"{shell_name}_complete"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.strip("\n").splitlines()


class TestCompletion:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("nodeseal sta", ["status"]),
            ("nodeseal up", ["upgrade-core"]),
            ("nodeseal c", ["connections", "check", "cleanup", "ca", "completion"]),
            ("nodeseal lab u", ["up", "unenrol"]),
            ("nodeseal lab up --no", ["--nodes", "--node-rules", "--not-enrolled"]),
            ("nodeseal lab up --node-rules kube", ["kube-proxy-iptables", "kube-proxy-nftables"]),
            ("nodeseal lab mode siem ", ["permissive", "strict"]),
            ("nodeseal lab mode siem -", ["--name", "-o", "--output", "-h", "--help"]),
            ("nodeseal status -o ", ["table", "json"]),
            ("nodeseal status --output j", ["json"]),
            ("nodeseal cleanup --a", ["--all"]),
            ("nodeseal completion b", ["bash"]),
            ("nodeseal help c", ["connections", "check", "cleanup", "ca", "completion"]),
            ("nodeseal help lab mo", ["mode"]),
            ("nodeseal lab up --name ", []),
            ("nodeseal nosuch x", []),
            # A value that is also a command's name.
            ("nodeseal lab exec status --na", ["--name"]),
        ],
    )
    def test_offers_what_may_stand_there(self, line: str, words: list[str]) -> None:
        assert offered(line) == [f"plain,{word}" for word in words]

    @pytest.mark.parametrize("path", COMMANDS)
    def test_every_command_and_option_is_offered(self, path: str) -> None:
        ctx = CONTEXTS[path]
        options = {name for one in ctx.command.get_params(ctx) for name in one.opts if name.startswith("-")}
        assert {item.value for item in ctx.command.shell_complete(ctx, "-")} == options
        if isinstance(ctx.command, Group):
            assert [item.value for item in ctx.command.shell_complete(ctx, "")] == ctx.command.list_commands(ctx)
        assert "core" not in COMMANDS

    @pytest.mark.parametrize("line", ["nodeseal check --config ", "nodeseal mesh check etc"])
    def test_leaves_files_to_the_shell(self, line: str) -> None:
        assert [one.split(",")[0] for one in offered(line)] == ["file"]

    def test_zsh_and_fish_are_told_what_a_word_is_for(self) -> None:
        what = "make a lab and leave it running"
        assert offered("nodeseal lab up", "zsh") == ["plain", "up", what]
        assert "".join(offered("nodeseal lab up", "fish")).endswith(what)

    @pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
    def test_script_is_for_its_shell(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["completion", name]) == 0
        script = capsys.readouterr().out
        assert f"_NODESEAL_COMPLETE={name}_complete" in script
        if shutil.which(name):
            done = subprocess.run([name, "-n"], input=script, capture_output=True, text=True, timeout=30, check=False)
            assert (done.returncode, done.stderr) == (0, "")

    def test_bash_completes_with_it(self) -> None:
        path = f"PATH={Path(sys.executable).parent}:$PATH"
        done = shell(
            f"{path}; source <({NODESEAL} completion bash); complete -p nodeseal; COMP_WORDS=(nodeseal lab unen); "
            "COMP_CWORD=2; _nodeseal_completion nodeseal; echo ${COMPREPLY[@]}"
        )
        assert done.stdout == "complete -o nosort -F _nodeseal_completion nodeseal\nunenrol\n"


class TestManual:
    def test_every_command_has_a_page(self, tmp_path: Path) -> None:
        subprocess.run([sys.executable, "-m", "nodeseal.cli.manual", tmp_path], timeout=60, check=True)
        names = {f"{'-'.join(['nodeseal', *path.split()])}.1" for path in COMMANDS}
        assert {path.name for path in tmp_path.iterdir()} == names

    @pytest.mark.parametrize("path", COMMANDS)
    def test_page_says_what_the_help_says(self, path: str) -> None:
        ctx = CONTEXTS[path]
        text = manual.page(ctx).replace("\\-", "-")
        assert text.startswith(f'.TH {"-".join(["NODESEAL", *path.upper().split()])} 1 "" "nodeseal {__version__}"')
        for one in ctx.command.get_params(ctx):
            for part in one.get_help_record(ctx) or ():
                assert part in text
        assert all(line in text for line, _what in EXAMPLES[path])

    @pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
    def test_groff_has_nothing_to_say_of_it(self, tmp_path: Path) -> None:
        for name, text in manual.pages():
            (tmp_path / name).write_text(text)
        done = subprocess.run(
            ["groff", "-man", "-ww", "-z", *tmp_path.iterdir()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_dots_and_backslashes_are_text(self) -> None:
        text = manual.page(click.Context(Command("x", help=".so \\fB/etc/passwd"), info_name="x"))
        assert "\n\\&.so \\efB/etc/passwd\n" in text
