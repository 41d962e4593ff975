"""The ways of capturing: one module each, behind the interface of backend.py."""
