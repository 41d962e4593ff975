"""The chaos run: everything that must cut nothing, mixed at random, under load and over a bad link.

`make chaos` runs it as `python -m chaos`; docs/when-parts-die.md says what it shows, CONTRIBUTING.md how to use it.
"""
