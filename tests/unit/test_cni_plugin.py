"""The network plugin, built with AddressSanitizer and UndefinedBehaviorSanitizer, as a container runtime calls it."""

from __future__ import annotations

import json
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support.cni_plugin import (
    CALL_S,
    CNI,
    FUZZ,
    RESULT,
    Called,
    FakeAgent,
    built,
    call,
    configuration,
    ended,
    environment,
    plugin,
    start,
)

OK = {"cniVersion": "1.0.0", "code": 0, "msg": "", "details": ""}
REFUSED = {"cniVersion": "1.0.0", "code": 11, "msg": "not now", "details": "no room"}


@pytest.fixture(scope="module")
def program() -> Path:
    return plugin()


@pytest.fixture
def agent(tmp_path: Path) -> FakeAgent:
    return FakeAgent(tmp_path / "cni.sock", [])


def test_add_prints_the_result_before_it_byte_for_byte(program: Path, agent: FakeAgent) -> None:
    result = b'{ "ips" :[ {"address":"10.1.0.7/24"}],\n\t"x":1e2, "\xc3\xa9":"\\u00e9" }'
    given = b'{"cniVersion":"1.0.0","socket":"%s","prevResult": %s ,"name":"n"}' % (bytes(agent.path), result)
    agent.answers = [OK]
    with agent.running():
        assert call(program, environment("ADD"), given) == Called(0, result, "")
    (asked,) = agent.questions
    assert asked["command"] == "ADD"
    assert asked["container_id"] == "sandbox-1"
    assert asked["netns"] == "/var/run/netns/cni-1"
    assert asked["args"].endswith("K8S_POD_UID=uid-1")
    assert asked["config"] == json.loads(given)
    assert 80_000 < agent.patience_ms[0] < 90_000


def test_refusal_is_printed_as_it_is(program: Path, agent: FakeAgent) -> None:
    agent.answers = [REFUSED]
    with agent.running():
        assert call(program, environment("ADD"), configuration(agent.path)).error == REFUSED


def test_add_waits_for_an_agent_that_comes(program: Path, agent: FakeAgent) -> None:
    waiting = start(program, environment("ADD"), json.dumps(configuration(agent.path)).encode())
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=0.3)
    agent.answers = [OK]
    with agent.running():
        assert json.loads(ended(waiting).output) == RESULT


def test_add_asks_the_next_agent_when_one_goes_without_an_answer(program: Path, agent: FakeAgent) -> None:
    agent.answers = [None, struct.pack(">4sI", b"NSC1", 500) + b'{"code"', OK]
    with agent.running():
        assert call(program, environment("ADD"), configuration(agent.path)).status == 0
    assert len(agent.questions) == 3


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="other protocol"),
        pytest.param(struct.pack(">4sI", b"NSC1", 0xFFFFFFFF) + b"{}", id="too large"),
        pytest.param(struct.pack(">4sI", b"NSC1", 3) + b"{,}", id="no JSON"),
    ],
)
def test_nonsense_is_no_answer(answer: bytes, program: Path, agent: FakeAgent) -> None:
    agent.answers = [answer]
    with agent.running():
        given = configuration(agent.path, timeout_seconds=1)
        agent.answers *= 50
        error = call(program, environment("ADD"), given).error
        agent.answers.clear()
    assert error["code"] == 11
    assert error["details"].startswith("it")


@pytest.mark.parametrize("code", ["0.0", '"0"', "null", "1e0", "[]"])
def test_only_the_number_0_says_that_all_is_well(code: str, program: Path, agent: FakeAgent) -> None:
    body = b'{"code":%s}' % code.encode()
    agent.answers = [struct.pack(">4sI", b"NSC1", len(body)) + body]
    with agent.running():
        assert call(program, environment("ADD"), configuration(agent.path)) == Called(1, body, "")


def test_without_an_agent_a_pod_does_not_start(program: Path, agent: FakeAgent) -> None:
    error = call(program, environment("ADD"), configuration(agent.path, timeout_seconds=1)).error
    assert error["code"] == 11
    assert error["cniVersion"] == "1.0.0"
    assert error["details"] == "no agent listens there"
    assert not (agent.path.parent / "let-through").exists()


@pytest.mark.parametrize("policy", ["maybe", "open " * 100, "", "OPEN", "open\ud800"])
def test_policy_of_another_version_counts_as_closed(policy: str, program: Path, agent: FakeAgent) -> None:
    given = configuration(agent.path, timeout_seconds=1, on_failure=policy)
    assert call(program, environment("ADD"), given).error["code"] == 11


def test_without_an_agent_and_open_it_starts_and_is_noted(program: Path, agent: FakeAgent) -> None:
    given = configuration(agent.path, timeout_seconds=1, on_failure="open")
    called = call(program, environment("ADD"), given)
    assert (called.status, json.loads(called.output)) == (0, RESULT)
    note = json.loads((agent.path.parent / "let-through" / "sandbox-1").read_bytes())
    assert note["container_id"] == "sandbox-1"
    assert note["netns"] == "/var/run/netns/cni-1"
    assert abs(note["time"] - time.time()) < 60
    assert call(program, environment("DEL"), given) == Called(0, b"", "")
    assert not list((agent.path.parent / "let-through").iterdir())


def test_open_for_some_namespaces(program: Path, agent: FakeAgent) -> None:
    for names, status in ((["kube-system", "default"], 0), (["kube-system", 1, None], 1), ([], 1)):
        given = configuration(agent.path, timeout_seconds=1, open_namespaces=names)
        assert call(program, environment("ADD"), given).status == status


def test_notes_are_bounded(program: Path, agent: FakeAgent) -> None:
    folder = agent.path.parent / "let-through"
    folder.mkdir()
    for number in range(1000):
        (folder / f"n{number}").touch()
    given = configuration(agent.path, timeout_seconds=1, on_failure="open")
    called = call(program, environment("ADD"), given)
    assert called.status == 0
    assert "no note" in called.errors
    assert len(list(folder.iterdir())) == 1000


def test_a_container_that_is_no_pod_is_none_of_ours(program: Path, agent: FakeAgent) -> None:
    for args in ("", "IgnoreUnknown=1", "K8S_POD_NAME=;K8S_POD_NAMESPACE=a", "XK8S_POD_NAME=a;K8S_POD_NAMESPACE=b"):
        called = call(program, environment("ADD", CNI_ARGS=args), configuration(agent.path))
        assert (called.status, json.loads(called.output)) == (0, RESULT)


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"prevResult": None}, 7, "prevResult"),
        ({"prevResult": []}, 7, "prevResult"),
        ({"socket": "cni.sock"}, 7, "'socket'"),
        ({"socket": "/" + "a" * 107}, 7, "'socket'"),
        ({"socket": 5}, 7, "'socket'"),
        ({"on_failure": True}, 7, "'on_failure'"),
        ({"on_failure": ["open"]}, 7, "'on_failure'"),
        ({"open_namespaces": "default"}, 7, "'open_namespaces'"),
        ({"timeout_seconds": 0}, 7, "'timeout_seconds'"),
        ({"timeout_seconds": 1e9}, 7, "'timeout_seconds'"),
        ({"timeout_seconds": 10**30}, 7, "'timeout_seconds'"),
        ({"cniVersion": "0.2.0"}, 1, "cniVersion"),
        ({"cniVersion": '"},{"'}, 1, "cniVersion"),
    ],
)
def test_bad_configuration_is_refused(
    changes: dict[str, Any], code: int, text: str, program: Path, agent: FakeAgent
) -> None:
    error = call(program, environment("ADD"), configuration(agent.path, **changes)).error
    assert error["code"] == code
    assert text in error["msg"]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (b"", 6),
        (b"[]", 6),
        (b'{"a":1}}', 6),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", 6),
        (b"{" + b" " * (1 << 20) + b"}", 5),
    ],
)
def test_what_is_no_configuration_is_refused(given: bytes, code: int, program: Path) -> None:
    assert call(program, environment("ADD"), given).error["code"] == code


@pytest.mark.parametrize(
    "changes",
    [
        {"CNI_COMMAND": "PLAY"},
        {"CNI_COMMAND": ""},
        {"CNI_CONTAINERID": "../../etc/passwd"},
        {"CNI_CONTAINERID": ""},
        {"CNI_CONTAINERID": "a" * 300},
        {"CNI_NETNS": ""},
        {"CNI_NETNS": "/run/netns/\x7f"},
        {"CNI_ARGS": "K8S_POD_NAME=\xe9"},
        {"CNI_ARGS": "A" * 5000},
    ],
)
def test_bad_environment_is_refused(changes: dict[str, str], program: Path, agent: FakeAgent) -> None:
    assert call(program, environment("ADD", **changes), configuration(agent.path)).error["code"] == 4


def test_quotes_in_the_environment_stay_in_their_place(program: Path, agent: FakeAgent) -> None:
    args = 'K8S_POD_NAME=a;K8S_POD_NAMESPACE=b;X="},"command":"DEL\\'
    agent.answers = [OK]
    with agent.running():
        assert call(program, environment("ADD", CNI_ARGS=args), configuration(agent.path)).status == 0
    assert agent.questions[0]["args"] == args
    assert agent.questions[0]["command"] == "ADD"


@pytest.mark.parametrize("command", ["DEL", "GC"])
@pytest.mark.parametrize(
    ("given", "changes"),
    [
        (b"", {}),
        (b"{", {}),
        (b'{"cniVersion":"9.9"}', {"CNI_NETNS": "", "CNI_ARGS": "", "CNI_CONTAINERID": ""}),
        (b'{"socket":"/nowhere/cni.sock"}', {"CNI_CONTAINERID": "../.."}),
        (b'{"socket":"relative"}', {"CNI_NETNS": "\xff"}),
    ],
)
def test_what_goes_never_fails(given: bytes, changes: dict[str, str], command: str, program: Path) -> None:
    assert call(program, environment(command, **changes), given) == Called(0, b"", "")


def test_departure_tells_the_agent_and_does_not_ask_twice(program: Path, agent: FakeAgent) -> None:
    agent.answers = [REFUSED, None]
    with agent.running():
        for _ in range(2):
            assert call(program, environment("DEL", CNI_NETNS=""), configuration(agent.path)).status == 0
    assert [one["command"] for one in agent.questions] == ["DEL", "DEL"]
    assert agent.questions[0]["netns"] == ""


def test_check_fails_only_where_an_agent_says_so(program: Path, agent: FakeAgent) -> None:
    assert call(program, environment("CHECK"), configuration(agent.path)) == Called(0, b"", "")
    agent.answers = [OK, REFUSED, None]
    with agent.running():
        assert call(program, environment("CHECK"), configuration(agent.path)) == Called(0, b"", "")
        assert call(program, environment("CHECK"), configuration(agent.path)).error == REFUSED
        assert call(program, environment("CHECK"), configuration(agent.path)).status == 0


def test_status_is_always_well(program: Path, agent: FakeAgent) -> None:
    given = configuration(agent.path, cniVersion="1.1.0")
    assert call(program, {"CNI_COMMAND": "STATUS"}, given) == Called(0, b"", "")


def test_versions(program: Path) -> None:
    for given, version in ((b'{"cniVersion":"0.4.0"}', "0.4.0"), (b"", "1.1.0"), (b'{"cniVersion":"\\"}"}', "1.1.0")):
        called = call(program, {"CNI_COMMAND": "VERSION"}, given)
        assert called.status == 0
        assert json.loads(called.output) == {
            "cniVersion": version,
            "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        }


def test_reading_survives_any_bytes() -> None:
    target = built("fuzz_cni", FUZZ / "fuzz_cni.c", FUZZ / "driver.c", CNI / "json.c", CNI / "call.c")
    corpus = sorted((FUZZ / "corpus" / "cni").iterdir())
    assert corpus
    done = subprocess.run([target, "50000", "20261201", *corpus], capture_output=True, text=True, timeout=CALL_S)
    assert done.returncode == 0, done.stderr
