"""``streamproc check``: is everything as it must be before ``streamproc run``?"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import click

from streamproc.cli.options import json_option, settings_options
from streamproc.dashboard.access import access
from streamproc.errors import ConfigError, Mistake
from streamproc.ops.reachability import Finding, check_endpoints
from streamproc.settings import Settings, read_settings, unknown_variables
from streamproc.settings.redshift import SCHEMES
from streamproc.sinks.redshift_statements import LONGEST_TEXT
from streamproc.sources.opening import check_published, connection_of
from streamproc.topic_pages import find_pages, load_pages
from streamproc.topology import FieldType, Topology
from streamproc.transform import Resources, Transform


@click.command(name="check")
@settings_options
@json_option
@click.pass_context
def check_command(ctx: click.Context, config: Path | None, topics: Path | None, as_json: bool) -> None:
    """Check settings, topic pages and endpoints.

    Everything is tried, whatever fails before it: the settings, the topic pages with the files and secrets
    they name, then broker, ledger, lake and warehouse as the service will use them, unless the settings have
    mistakes and do not say where these are. Nothing is left behind, but for a small object in the lake where
    sweep is off.

    Exits with 2 for configuration mistakes, 1 for endpoints that do not work, 0 when all is well.
    """
    settings, about_settings, mistakes = _check_settings(config, topics)
    about_pages, page_mistakes = _check_pages(topics or (settings.topics if settings else None), settings)
    findings = [about_settings, about_pages]
    mistakes += page_mistakes
    if settings is not None:
        findings += asyncio.run(check_endpoints(settings))
    if as_json:
        click.echo(json.dumps(_as_json(findings, mistakes), indent=2))
    else:
        _print(findings, mistakes)
        if settings is None:
            click.echo("     Broker, ledger, lake and warehouse were not tried: mend the settings first.")
    if mistakes or any(finding.misconfigured for finding in findings):
        ctx.exit(2)
    ctx.exit(0 if all(finding.ok for finding in findings) else 1)


def _check_settings(
    config: Path | None, topics: Path | None
) -> tuple[Settings | None, Finding, list[Mistake]]:
    started = time.monotonic()
    target = str(config or "streamproc.toml and environment")
    settings, mistakes = None, []
    try:
        settings = read_settings(config, overrides={"topics": str(topics) if topics else None})
        # As if on localhost: whether others have to log in is for the process that serves the pages, which may be
        # given a password that this one is not.
        access(settings.dashboard, "localhost")
    except ConfigError as error:
        mistakes = list(error.mistakes)
    doubts = "; ".join(f"{name} is not read: {near}?" for name, near in unknown_variables(os.environ).items())
    return settings, _finding("settings", target, started, doubts, mistakes), mistakes


def _check_pages(topics: Path | None, settings: Settings | None) -> tuple[Finding, list[Mistake]]:
    started = time.monotonic()
    mistakes: list[Mistake] = []
    note, target = "", str(topics or "topics")
    try:
        folder = find_pages(topics)
        target = str(folder)
        pages = load_pages(folder)
        note = ", ".join(f"{name} ({len(page.tables)} tables)" for name, page in pages.items())
        for page in pages.values():
            try:
                Transform(page, Resources(os.environ, folder if folder.is_dir() else folder.parent))
            except ConfigError as error:
                mistakes += error.mistakes
        if settings is not None and settings.warehouse.scheme in SCHEMES:
            note += _too_long_for_redshift(pages.values())
        if settings is not None and not settings.broker.embedded:
            check_published(connection_of(settings), pages.values())
    except ConfigError as error:
        mistakes += error.mistakes
    return _finding("topic pages", target, started, note, mistakes), mistakes


def _too_long_for_redshift(pages: Iterable[Topology]) -> str:
    """What to say of fields with texts that a column may not hold. A text is not all of its record."""
    most = LONGEST_TEXT // 4  # bytes of a character
    doubtful = [
        f"{page.name}.{field.name}"
        for page in pages
        for field in page.contract.fields
        if page.sinks.warehouse and page.contract.max_record_bytes - 1 > LONGEST_TEXT
        if field.type in (FieldType.STRING, FieldType.JSON)
        if field.max_length is None or field.max_length > most
    ]
    if not doubtful:
        return ""
    kept = f"Redshift takes texts of {LONGEST_TEXT:,} bytes, and no object in which one is longer"
    return f"; {kept}: give {', '.join(doubtful)} a max_length of at most {most:,}"


def _finding(what: str, target: str, started: float, note: str, mistakes: list[Mistake]) -> Finding:
    count = len(mistakes)
    wrong = f"{count} mistake{'s' if count > 1 else ''}" if mistakes else ""
    seconds = time.monotonic() - started
    return Finding(what, target, seconds, note, wrong, misconfigured=bool(mistakes))


def _as_json(findings: list[Finding], mistakes: list[Mistake]) -> dict[str, object]:
    return {
        "ok": all(finding.ok for finding in findings),
        "checks": [
            {
                "what": finding.what,
                "target": finding.target,
                "ok": finding.ok,
                "seconds": round(finding.seconds, 3),
                "note": finding.note,
                "problem": finding.wrong,
                "hint": finding.hint,
            }
            for finding in findings
        ],
        "mistakes": [{"where": m.where, "problem": m.problem, "fix": m.fix} for m in mistakes],
    }


def _print(findings: list[Finding], mistakes: list[Mistake]) -> None:
    for finding in findings:
        mark = click.style("ok  ", fg="green") if finding.ok else click.style("FAIL", fg="red", bold=True)
        said = finding.wrong or finding.note
        click.echo(f"{mark} {finding.what:<12} {finding.seconds:6.2f} s  {finding.target}")
        if said:
            click.echo(f"     {said}" + (f" ({finding.hint})" if finding.hint else ""))
    for mistake in mistakes:
        click.echo(f"     {mistake.where}: {mistake.problem}\n       → {mistake.fix}")
