"""bench.strangers and bench.hello: what is sent, and how the figures are put together."""

from __future__ import annotations

import ssl

import pytest
from bench import strangers
from bench.certificates import issue, make_authority
from bench.hello import client_hello, group


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    directory = tmp_path_factory.mktemp("hello")
    issue(make_authority(directory / "ca"), "server", directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "both.pem")
    return context


@pytest.mark.parametrize("name", ["X25519", "P-256", "P-384", "ffdhe8192"])
def test_a_server_that_knows_the_group_answers_the_hello(server: ssl.SSLContext, name: str) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = server.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(client_hello(group(name)))
    with pytest.raises(ssl.SSLWantReadError):  # for the client's Finished
        session.do_handshake()
    handshake, server_hello = 22, 2
    answer = outgoing.read()
    assert (answer[0], answer[5]) == (handshake, server_hello)


def test_hellos_are_not_the_same_twice() -> None:
    assert client_hello(group("P-256")) != client_hello(group("P-256"))
    with pytest.raises(KeyError):
        group("P-521")


def row(ratio: float) -> dict[str, object]:
    return {
        "flood": "P-384",
        "alone_p50": 3.0,
        "alone_p99": 4.0,
        "during_p50": 3.5,
        "during_p99": 4.0 * ratio,
        "ratio_p99": ratio,
        "tunnels": 100,
        "failed": 0,
        "strangers_per_second": 1234.5,
    }


def test_figures_are_the_medians_of_the_rounds_and_the_worst_is_told() -> None:
    figures = strangers.summarise([row(1.0), row(5.0), row(2.0)])
    one = figures["floods"]["P-384"]
    assert (one["ratio_p99"], one["ratio_p99_worst"], one["rounds"]) == (2.0, 5.0, 3)
    assert strangers.markdown(figures).splitlines()[-1] == (
        "| P-384 | 1,234 | 3.0, 3.5 ms | 4.0, 8.0 ms | 2.0 (5.0) | 100, 0 |"
    )


def test_a_flood_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SystemExit):
        strangers.main(["--only", "P-521"])
