"""Compiles ``native/*.c`` into ``streamproc/_records.abi3.so`` when the project is built or installed from its tree.

One file for every Python from 3.11 on (the limited API). Without a C compiler, or without Python's headers, the build
goes on and makes a package of Python alone, which does the same more slowly; with ``STREAMPROC_NATIVE=required`` it
fails instead.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "streamproc/_records.abi3.so"
_FLAGS = ["-std=c11", "-O3", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]


class NativeBuildHook(BuildHookInterface[Any]):
    """Compiles before the wheel is put together, an editable one too."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """``version``: ``standard`` or ``editable``."""
        root = Path(self.root)
        wish = os.environ.get("STREAMPROC_NATIVE", "auto")
        if wish == "off":
            return
        try:
            compile_library(root)
        except (OSError, subprocess.CalledProcessError) as error:
            (root / LIBRARY).unlink(missing_ok=True)
            said = getattr(error, "stderr", None) or str(error)
            if wish == "required":
                raise RuntimeError(f"{LIBRARY} could not be compiled:\n{said}") from error
            self.app.display_warning(
                f"streamproc is installed without its compiled part and decodes several times slower: {said}"
            )
            return
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"cp311-abi3-{platform}"


def compile_library(root: Path) -> None:
    """Compile the C files of a checkout. Raises OSError or CalledProcessError when that cannot be done."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    flags = [*_FLAGS, *shlex.split(os.environ.get("CFLAGS", ""))]
    link = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    sources = sorted(str(path) for path in (root / "native").glob("*.c"))
    # Beside its place and then into it: a process that has the old one open keeps that.
    fresh = root / f"{LIBRARY}.{os.getpid()}"
    include = f"-I{sysconfig.get_paths()['include']}"
    try:
        subprocess.run(  # noqa: S603  # the compiler that Python was built with, or the builder's own choice
            [*compiler, *flags, include, *link, *sources, "-o", str(fresh)],
            check=True,
            capture_output=True,
            text=True,
        )
        fresh.replace(root / LIBRARY)
    finally:
        fresh.unlink(missing_ok=True)
