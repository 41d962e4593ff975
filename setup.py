"""The one build setting that pyproject.toml cannot express: which script describes the C extension."""

from setuptools import setup

setup(cffi_modules=["cext/build_core.py:ffi"])
