"""What the documentation tells people to type exists, and what it links to is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

from streamproc.cli import COMMANDS, main
from streamproc.settings import declared, variable
from tests.house.documents import PAGES, ROOT, Block, Command, anchors, blocks, commands

#: Programs that the pages may name and that are not ours.
FOREIGN = {"aws", "curl", "docker", "duckdb", "git", "kubectl", "pip", "psql"}
MAKE_TARGETS = set(re.findall(r"^([a-z.][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
COMMAND_LINES = list(commands())


@pytest.mark.parametrize("command", COMMAND_LINES, ids=str)
def test_every_command_in_a_console_block_exists_with_its_options(command: Command) -> None:
    program, *arguments = command.words
    if program == "make":
        targets = [word for word in arguments if "=" not in word]
        assert targets and set(targets) <= MAKE_TARGETS
    elif Path(program).name == "streamproc":
        _check_ours(arguments)
    elif program.startswith(("./", "benchmarks/", ".ci/")):
        assert (ROOT / program).exists()
    else:
        assert Path(program).name in FOREIGN


def _check_ours(arguments: list[str]) -> None:
    """Walk down the verbs; every option has to be declared by the verb it stands behind."""
    command: click.Command = main
    context = click.Context(main)
    for word in arguments:
        if word in {"--help", "-h"}:
            return
        if word.startswith("--"):
            declared_options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            assert word.partition("=")[0] in declared_options, f"{command.name} has no {word}"
        elif isinstance(command, click.Group):
            found = command.get_command(context, word)
            assert found is not None, f"{command.name} has no verb {word}"
            command = found
    needs_verb = isinstance(command, click.Group) and not command.invoke_without_command
    assert not needs_verb, f"{command.name} needs a verb behind it"


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_is_documented(verb: str) -> None:
    documented = {w for command in COMMAND_LINES for w in command.words if "streamproc" in command.words[0]}
    prose = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.parent.name == "docs")
    assert verb in documented or f"`streamproc {verb}" in prose


def test_help_lists_every_verb() -> None:
    text = main.get_help(click.Context(main))
    assert [verb for verb in COMMANDS if not re.search(rf"^  {verb}\s", text, re.MULTILINE)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    broken = []
    prose = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_examples_parse(block: Block) -> None:
    tomllib.loads(block.text)


def test_settings_named_in_the_documentation_exist() -> None:
    known = {variable(key) for key, _ in declared()}
    known |= {f"{variable(key)}_FILE" for key, setting in declared() if setting.secret}
    known |= {"STREAMPROC_CONFIG", "STREAMPROC_DEBUG", "STREAMPROC_TEST_BROKER", "STREAMPROC_TEST_DATA"}
    known |= {"STREAMPROC_KAFKA_CACHE", "STREAMPROC_NATIVE"}
    named = {
        name for page in PAGES for name in re.findall(r"\bSTREAMPROC_[A-Z0-9_]*[A-Z0-9]\b", page.read_text())
    }
    assert named - known == set()


def test_every_page_is_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    queue = list(reached)
    while queue:
        page = queue.pop()
        for target in re.findall(r"\]\(([^)\s#]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            there = (page.parent / target).resolve()
            if there.exists() and there not in reached:
                reached.add(there)
                queue.append(there)
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in reached] == []
