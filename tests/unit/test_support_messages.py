"""The messages of the traffic that tests send: whatever happens to the bytes is found and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.messages import HEADER_SIZE, LAST, MARKER_SIZE, BrokenStreamError, Receiver, Sender

MARKER = bytes(range(MARKER_SIZE))
OTHER = bytes(range(100, 100 + MARKER_SIZE))


def conversation(count: int = 5, size: int = 100) -> list[bytes]:
    sender = Sender(MARKER, 7, 1000)
    return [sender.message(size) for _ in range(count)]


@pytest.mark.parametrize("step", [1, 7, HEADER_SIZE, 1 << 16])
def test_messages_arrive_whatever_the_segments(step: int) -> None:
    stream = b"".join(conversation())
    receiver = Receiver()
    messages = [m for at in range(0, len(stream), step) for m in receiver.feed(stream[at : at + step])]
    assert [message.number for message in messages] == [1, 2, 3, 4, 5]
    assert (receiver.connection, receiver.marker, receiver.bytes) == (7, MARKER, len(stream))
    assert messages[0].reply_ms == 1000


def test_empty_payload_is_a_message() -> None:
    assert [message.size for message in Receiver().feed(Sender(MARKER, 1, 0).message(0))] == [0]


def lose_a_message(parts: list[bytes]) -> list[bytes]:
    return parts[:2] + parts[3:]


def repeat_a_message(parts: list[bytes]) -> list[bytes]:
    return [*parts[:3], parts[2], *parts[3:]]


def swap_messages(parts: list[bytes]) -> list[bytes]:
    return [parts[0], parts[2], parts[1], *parts[3:]]


def lose_a_byte(parts: list[bytes]) -> list[bytes]:
    return [parts[0], parts[1][:-1], *parts[2:]]


def repeat_a_byte(parts: list[bytes]) -> list[bytes]:
    return [parts[0], parts[1] + parts[1][-1:], *parts[2:]]


def change_a_byte(parts: list[bytes]) -> list[bytes]:
    return [parts[0], parts[1][:-1] + b"\xff", *parts[2:]]


def change_a_number(parts: list[bytes]) -> list[bytes]:
    at = MARKER_SIZE + 8
    return [parts[0], parts[1][:at] + b"\xff" + parts[1][at + 1 :], *parts[2:]]


def mix_in_another_connection(parts: list[bytes]) -> list[bytes]:
    other = Sender(MARKER, 8, 1000)
    other.message(1)
    return [parts[0], other.message(100), *parts[2:]]


def mix_in_another_marker(parts: list[bytes]) -> list[bytes]:
    return [parts[0], Sender(OTHER, 7, 1000).message(100), *parts[2:]]


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lose_a_message, "messages 3 to 3 are lost"),
        (repeat_a_message, "message 3 is repeated: 4 was expected"),
        (swap_messages, "messages 2 to 2 are lost, or come later"),
        (lose_a_byte, "message 2 .* was changed, or bytes of it are lost"),
        (repeat_a_byte, "lost or repeated after message 2"),
        (change_a_byte, "message 2 .* was changed"),
        (change_a_number, "message 2 .* was changed"),
        (mix_in_another_connection, "message 2 of connection 8 arrived in connection 7"),
        (mix_in_another_marker, "lost or repeated after message 1"),
    ],
)
def test_harm_is_named(harm: Callable[[list[bytes]], list[bytes]], text: str) -> None:
    with pytest.raises(BrokenStreamError, match=text):
        Receiver().feed(b"".join(harm(conversation())))


def test_stream_that_ends_before_the_last_message_is_cut() -> None:
    receiver = Receiver()
    receiver.feed(b"".join(conversation()))
    assert not receiver.end()


def test_stream_that_ends_within_the_last_message_is_cut() -> None:
    receiver = Receiver()
    receiver.feed(Sender(MARKER, 1, 0).message(50, LAST)[:-1])
    assert not receiver.end()


def test_stream_that_ends_with_the_last_message_is_whole() -> None:
    sender, receiver = Sender(MARKER, 1, 0), Receiver()
    receiver.feed(sender.message(50) + sender.message(0, LAST))
    assert receiver.end()


@pytest.mark.parametrize("more", [b"x", Sender(MARKER, 1, 0).message(3)])
def test_bytes_after_the_last_message_are_named(more: bytes) -> None:
    with pytest.raises(BrokenStreamError, match="last"):
        Receiver().feed(Sender(MARKER, 1, 0).message(50, LAST) + more)


def test_any_31_bytes_of_payload_hold_the_marker() -> None:
    payload = Sender(MARKER, 1, 0).message(200)[HEADER_SIZE:]
    assert all(MARKER in payload[at : at + 2 * MARKER_SIZE - 1] for at in range(len(payload) - 2 * MARKER_SIZE + 2))
