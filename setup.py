"""The build settings that pyproject.toml cannot express, or only as an experiment of setuptools."""

from setuptools import setup

setup(
    cffi_modules=["cext/build_core.py:ffi", "cext/build_keys.py:ffi"],
    # cffi compiles against the limited API: one wheel serves this Python and every later one.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
