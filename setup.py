"""The build settings that pyproject.toml cannot express, or only as an experiment of setuptools."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

PLUGIN = "nodeseal/cni/nodeseal-cni"
# One static program: it runs on the node itself, which has another C library, or none. Without time or path in it.
PLUGIN_COMPILE = [
    "gcc",
    "-std=gnu11",
    "-Os",
    "-static",
    "-s",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wshadow",
    "-Werror",
]
PLUGIN_LINK = ["-ffunction-sections", "-Wl,--gc-sections", "-Wl,-z,relro,-z,noexecstack", "-fstack-protector-strong"]


class BuildWithPlugin(build_ext):
    """Builds the network plugin beside the extensions."""

    def run(self) -> None:
        """Raises CalledProcessError, with the compiler's words on standard error."""
        super().run()
        root = Path("agent") if self.inplace else Path(self.build_lib)
        target = root / PLUGIN
        target.parent.mkdir(parents=True, exist_ok=True)
        sources = sorted(str(path) for path in Path("cext/cni").glob("*.c"))
        subprocess.run([*PLUGIN_COMPILE, *PLUGIN_LINK, *sources, "-o", str(target)], check=True)


setup(
    cffi_modules=["cext/build_core.py:ffi", "cext/build_keys.py:ffi"],
    cmdclass={"build_ext": BuildWithPlugin},
    # cffi compiles against the limited API: one wheel serves this Python and every later one.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
