"""Why the certificate service does not do what it was asked: one type, from the place that knows to the answer."""

from __future__ import annotations

from nodeseal.contracts.authority import ServiceWord


class Refused(Exception):
    """`word`: for machines; the text: one line for people, what, where, and what to do; `retry_after`: seconds after
    which another attempt can help, None if none can."""

    def __init__(self, word: ServiceWord, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.word = word
        self.retry_after = retry_after
