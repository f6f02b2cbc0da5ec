"""A browser is opened only where somebody sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamproc.cli.demo_dashboard import has_display
from streamproc.runtimes.attach import embedded_in
from streamproc.settings import read_settings


@pytest.mark.parametrize(
    ("environment", "seen"),
    [
        ({}, False),
        ({"DISPLAY": ":0"}, True),
        ({"WAYLAND_DISPLAY": "w"}, True),
        ({"DISPLAY": ":0", "CI": "true"}, False),
    ],
)
def test_a_browser_needs_a_display_and_no_ci(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], seen: bool
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert has_display() is seen


def test_the_pages_of_a_folder_are_not_those_of_the_database_that_settings_name(tmp_path: Path) -> None:
    named = {"STREAMPROC_DASHBOARD_DATABASE": "postgresql://reader@db.example/prod"}
    settings = read_settings(None, named, embedded_in(tmp_path))
    assert settings.dashboard.database is not None and settings.dashboard.database.embedded
