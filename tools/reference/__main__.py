"""Writes docs/reference/ and docs/words.md: `python -m tools.reference`, or `make reference`."""

from __future__ import annotations

from pathlib import Path

from tools.reference.pages import PAGES


def main() -> None:
    """In the repository that this file is in."""
    root = Path(__file__).resolve().parents[2]
    for name, text in PAGES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text())


if __name__ == "__main__":
    main()
