"""Finds the settings: command line, environment, secret files, ``streamproc.toml``, defaults."""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from streamproc import native
from streamproc.errors import ConfigError, Mistake
from streamproc.quantities import Invalid
from streamproc.redaction import Url
from streamproc.settings.redshift import SCHEMES
from streamproc.settings.schema import PREFIX, Settings, declared, variable
from streamproc.settings.setting import Setting

DEFAULT_FILE = "streamproc.toml"


def read_settings(
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """The settings in force.

    ``config``: the settings file, else ``STREAMPROC_CONFIG``, else ``streamproc.toml`` in the working
    directory if there is one. ``environ`` defaults to the process's. ``overrides``: dotted key → raw value,
    from command-line options; ``None`` values are ignored.

    Raises:
        ConfigError: lists every mistake, each with the place it was found in.
    """
    environ = os.environ if environ is None else environ
    mistakes: list[Mistake] = []
    file, in_file = _read_file(config, environ, mistakes)
    lookup = _Lookup(file, in_file, environ, {k: v for k, v in (overrides or {}).items() if v is not None})
    known = dict(declared())
    _report_unknown(file, in_file, known, mistakes)
    values = {key: lookup.value(key, declaration, mistakes) for key, declaration in known.items()}
    _check_kafka(values, lookup, mistakes)
    _check_redshift(values, lookup, mistakes)
    _check_logs(values, lookup, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    return _with_computed_defaults(_build(Settings, values))


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """``STREAMPROC_*`` variables that no setting reads → the setting's variable that was perhaps meant.

    They are no mistake: Kubernetes sets ``STREAMPROC_PORT`` and the like for a service of that name, and
    topic pages may name variables of their own. Only those close to a known name are returned.
    """
    known = {variable(key) for key, _ in declared()} | {PREFIX + "CONFIG", PREFIX + "DEBUG", native.VARIABLE}
    known |= {f"{variable(key)}_FILE" for key, declaration in declared() if declaration.secret}
    found = {}
    for name in sorted(set(environ) - known):
        if name.startswith(PREFIX) and (near := difflib.get_close_matches(name, known, n=1, cutoff=0.87)):
            found[name] = near[0]
    return found


def _read_file(
    config: Path | None, environ: Mapping[str, str], mistakes: list[Mistake]
) -> tuple[Path, dict[str, object]]:
    in_environment = environ.get(PREFIX + "CONFIG")
    named = config or (Path(in_environment) if in_environment else None)
    may_read = "Name a file that this process may read"
    file = named or Path(DEFAULT_FILE)
    try:
        return file, _flatten(tomllib.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if named is not None:
            fix = f"Create it, or leave --config and {PREFIX}CONFIG out"
            mistakes.append(Mistake(str(file), "there is no such file", fix))
    except OSError as error:
        mistakes.append(Mistake(str(file), f"cannot be read: {error.strerror}", may_read))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        # Neither parser's message quotes the text around the mistake, which may be a password.
        mistakes.append(Mistake(str(file), f"is not TOML: {error}", "See https://toml.io for the format"))
    return file, {}


def _flatten(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@dataclass(frozen=True, slots=True)
class _Lookup:
    """The places a setting can stand in."""

    file: Path
    in_file: Mapping[str, object]
    environ: Mapping[str, str]
    overrides: Mapping[str, object]

    def place(self, key: str) -> str:
        """Where the value of ``key`` was found, or both places where it could be set."""
        if key in self.overrides:
            return f"--{key.rpartition('.')[2].replace('_', '-')}"
        for name in (variable(key), variable(key) + "_FILE"):
            if self.environ.get(name):
                return f"environment: {name}"
        if key in self.in_file:
            return f"{self.file.name}: {key}"
        return f"{self.file.name}: {key} (environment: {variable(key)})"

    def raw(self, key: str, declaration: Setting) -> tuple[object, Path]:
        """The raw value and the folder its relative paths start at."""
        name = variable(key)
        if key in self.overrides:
            return self.overrides[key], Path()
        if self.environ.get(name):  # an empty variable is how Compose files say "not set"
            return self.environ[name], Path()
        if declaration.secret and self.environ.get(f"{name}_FILE"):
            return _secret_file(Path(self.environ[f"{name}_FILE"])), Path()
        if key in self.in_file:
            return self.in_file[key], self.file.parent
        return declaration.default, Path()

    def value(self, key: str, declaration: Setting, mistakes: list[Mistake]) -> object:
        try:
            raw, folder = self.raw(key, declaration)
            return None if raw is None else declaration.parse(raw, folder)
        except Invalid as error:
            mistakes.append(Mistake(self.place(key), error.problem, error.fix))
            return None


def _secret_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Invalid(f"{path} cannot be read: {reason}", "Name a file that this process may read") from None


def _report_unknown(
    file: Path, in_file: Mapping[str, object], known: Mapping[str, Setting], mistakes: list[Mistake]
) -> None:
    for key in in_file:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            fix = f"Did you mean {near[0]}?" if near else "docs/settings.md lists all settings"
            mistakes.append(Mistake(f"{file.name}: {key}", "is not a setting", fix))


def _check_kafka(values: Mapping[str, object], lookup: _Lookup, mistakes: list[Mistake]) -> None:
    def require(key: str, why: str) -> None:
        if values[f"kafka.{key}"] is None and f"kafka.{key}" not in wrong:
            fix = f"Set kafka.{key} in {lookup.file.name}, or {variable('kafka.' + key)}"
            mistakes.append(Mistake(lookup.place(f"kafka.{key}"), f"is needed {why}", fix))

    wrong = {key for key, _ in declared() for m in mistakes if m.where == lookup.place(key)}
    protocol, mechanism = values["kafka.security_protocol"], values["kafka.sasl_mechanism"]
    sasl = isinstance(protocol, str) and protocol.startswith("SASL")
    if sasl:
        require("sasl_mechanism", f"with security_protocol {protocol}")
    elif protocol is not None and mechanism is not None:
        fix = "Set kafka.security_protocol to SASL_SSL (or SASL_PLAINTEXT)"
        mistakes.append(Mistake(lookup.place("kafka.sasl_mechanism"), f"has no effect with {protocol}", fix))
    if sasl and mechanism == "AWS_MSK_IAM":
        require("aws_region", "with AWS_MSK_IAM")
        if protocol == "SASL_PLAINTEXT":
            place, fix = lookup.place("kafka.security_protocol"), "Set kafka.security_protocol to SASL_SSL"
            mistakes.append(Mistake(place, "MSK takes IAM over TLS only", fix))
    elif sasl and mechanism is not None:
        require("username", f"with sasl_mechanism {mechanism}")
        require("password", f"with sasl_mechanism {mechanism}")
    if values["kafka.cert_file"] is not None:
        require("key_file", "with kafka.cert_file")
    if values["kafka.key_file"] is not None:
        require("cert_file", "with kafka.key_file")


def _check_redshift(values: Mapping[str, object], lookup: _Lookup, mistakes: list[Mistake]) -> None:
    warehouse, lake = values["warehouse"], values["lake"]
    if not isinstance(warehouse, Url) or warehouse.scheme not in SCHEMES:
        return
    if any(mistake.where == lookup.place("lake") for mistake in mistakes):
        return
    if not isinstance(lake, Url) or lake.scheme != "s3":
        problem = "Redshift loads from S3, and the lake is somewhere else"
        mistakes.append(Mistake(lookup.place("warehouse"), problem, 'Set lake to "s3://bucket/prefix"'))
    elif not re.fullmatch(r"[\w:/.=+@-]+", lake.reveal(), re.ASCII):
        problem = "has characters that a COPY of Redshift had better not be given"
        mistakes.append(Mistake(lookup.place("lake"), problem, "Use letters, digits and / . _ = + @ -"))


def _check_logs(values: Mapping[str, object], lookup: _Lookup, mistakes: list[Mistake]) -> None:
    """A lake whose objects are found as logs feeds itself: each commit brings the next, of nothing but rejects."""
    broker, lake = values["broker"], values["lake"]
    if not isinstance(broker, Url) or not isinstance(lake, Url) or broker.scheme != lake.scheme:
        return
    place = broker.reveal()
    if broker.scheme == "file" or "/" not in broker.rest:  # else to S3 it is how keys begin
        place += "/"
    if any(f"{lake.reveal()}/{folder}/".startswith(place) for folder in ("lake", "rejects", "manifests")):
        problem = f"lies in {broker}: what is written there would be read as logs"
        fix = "Write it to another bucket or prefix. Prefixes of logs end with a slash, or take in what only begins so"
        mistakes.append(Mistake(lookup.place("lake"), problem, fix))


def _build(section: type, values: Mapping[str, object], prefix: str = "") -> Any:
    hints = typing.get_type_hints(section)
    arguments = {
        field.name: values[key]
        if (key := prefix + field.name) in values
        else _build(hints[field.name], values, f"{key}.")
        for field in fields(section)
    }
    return section(**arguments)


def _with_computed_defaults(settings: Settings) -> Settings:
    lake = settings.lake or Url((settings.data_dir.resolve() / "lake").as_uri())
    warehouse = settings.warehouse or Url("embedded:" if settings.ledger.embedded else "none")
    worker = settings.worker or f"{socket.gethostname()}-{os.getpid()}"
    return replace(settings, lake=lake, warehouse=warehouse, worker=worker)
