"""A module of users' own agents that cannot be used is told as a mistake of the configuration."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streamproc.errors import ConfigError
from streamproc.runtimes.agents import UserAgents
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.topic_pages import load_page

PAGE = Path(__file__).parents[2] / "topics" / "clickstream.toml"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("async def setup(app, streams):\n    app.agent(streams.rows)\n", "setup is an async function"),
        ("import sys\n\nsys.exit('usage: own_agents FILE')\n", "cannot be imported: SystemExit: usage"),
        ("import sys\n\ndef setup(app, streams):\n    sys.exit(3)\n", r"setup raised SystemExit\(3\)"),
        ("setup = 1\n", "has no function setup"),
    ],
)
async def test_a_module_that_would_run_nothing_or_end_the_worker_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    (tmp_path / "own_agents.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(ConfigError, match=f"--agents own_agents: {problem}"):
            UserAgents(
                "own_agents", load_page(PAGE), KafkaConnection("127.0.0.1:1"), "group", tmp_path / "data"
            )
    finally:
        sys.modules.pop("own_agents", None)
