"""The peers of the benchmark that run on the JVM: their manifests, and what all of them share."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.house.documents import ROOT

FOLDER = ROOT / "benchmarks" / "peers" / "jvm"
MANIFESTS = {path.stem: tomllib.loads(path.read_text()) for path in sorted(FOLDER.glob("peer-*.toml"))}

_PROBE = """
package peers;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

public final class Probe {
    public static void main(String[] arguments) {
        Contestant.run(arguments, contestant -> {
            Contestant.begin();
            System.err.println(PostgresUrl.toJdbc(contestant.option("postgres", "")));
            System.err.println(PostgresUrl.toJdbc("postgresql://ann:s3@db.example:6543/clicks"));
            List<Object[]> rows = new ArrayList<>();
            for (String url : Files.readAllLines(Path.of(contestant.option("urls", "")), StandardCharsets.UTF_8)) {
                String campaign = PageUrl.campaign(url);
                rows.add(new Object[] {url, PageUrl.path(url), campaign == null ? "" : campaign, 7L});
                Contestant.processed();
            }
            Contestant.all().get();
            contestant.finish(rows);
        });
    }
}
"""

_URLS = [
    "https://shop.example.com/p/1?utm_source=google&utm_campaign=c7",
    "https://shop.example.com/p/1?utm_campaign=c7&a=b",
    "https://shop.example.com/p/1?utm_campaign=",
    "https://shop.example.com/p/1/?q=a/b#top",
    "https://shop.example.com/p/1#a?b",
    "https://shop.example.com/",
    "https://shop.example.com",
    'https://shop.example.com/"quoted"\\backslash/ü?tab\tand=more',
]


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_a_manifest_builds_and_runs_is_in_the_folder(name: str) -> None:
    manifest = MANIFESTS[name]
    words = [word for command in [*manifest["setup"], manifest["command"]] for word in command]
    named = re.findall(r"\{peer\}/([\w.-]+)", " ".join(words))
    assert named and all((FOLDER / file).is_file() for file in named)
    main = next(word for word in manifest["command"] if word.startswith("peers."))
    assert f"{main.removeprefix('peers.')}.java" in named


def test_manifests_that_share_a_build_make_the_same_one() -> None:
    # The driver runs the setup of each when a file has changed: another one would take away what the first built.
    by_build: defaultdict[str, list[Any]] = defaultdict(list)
    for manifest in MANIFESTS.values():
        by_build[manifest["setup"][0][-1]].append(manifest["setup"])
    assert all(setup == setups[0] for setups in by_build.values() for setup in setups)


def test_every_dependency_is_of_one_exact_version_which_the_title_tells() -> None:
    for manifest in MANIFESTS.values():
        pom = next(word for word in manifest["setup"][1] if word.endswith(".xml")).removeprefix("{peer}/")
        text = (FOLDER / pom).read_text()
        dependencies = re.findall(r"<dependency>.*?</dependency>", text, re.DOTALL)
        versions = [re.search(r"<version>(.*?)</version>", it) for it in dependencies]
        named = dict(re.findall(r"<(\w+)>([\w.-]+)</\1>", text))
        exact = [named.get(it[1].strip("${}"), it[1]) for it in versions if it is not None]
        assert len(exact) == len(dependencies)
        assert all(re.fullmatch(r"\d+(\.\d+)+(-\d+\.\d+)?", version) for version in exact)
        release = re.search(r"\d+\.\d+", manifest["title"])
        assert release is not None and exact[0].startswith(release[0] + ".")


def test_every_dependency_has_a_checksum_that_the_setup_compares() -> None:
    for manifest in MANIFESTS.values():
        pom = next(word for word in manifest["setup"][1] if word.endswith(".xml")).removeprefix("{peer}/")
        sums = pom.replace(".xml", ".sha256")
        assert ["sha256sum", "--check", "--quiet", "--strict", f"{{peer}}/{sums}"] in manifest["setup"]
        lines = [
            re.fullmatch(r"[0-9a-f]{64} [ *](\S+)", it) for it in (FOLDER / sums).read_text().splitlines()
        ]
        files = " ".join(it[1] for it in lines if it is not None)
        assert len(lines) == len(files.split()) > 10
        artifacts = re.findall(r"<dependency>.*?<artifactId>(.*?)</artifactId>", (FOLDER / pom).read_text())
        assert [it for it in artifacts if f"/jars/{it}-" not in files] == []


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("javac") is None:
        pytest.skip("needs javac")
    folder = tmp_path_factory.mktemp("classes")
    (folder / "Probe.java").write_text(_PROBE)
    sources = [
        FOLDER / "Contestant.java",
        FOLDER / "PageUrl.java",
        FOLDER / "PostgresUrl.java",
        folder / "Probe.java",
    ]
    subprocess.run(["javac", "--release", "17", "-d", str(folder), *map(str, sources)], check=True)
    return folder


@pytest.mark.slow
def test_the_shared_classes_read_urls_and_write_json_as_the_standard_library_does(
    classes: Path, tmp_path: Path
) -> None:
    (tmp_path / "urls").write_text("\n".join(_URLS))
    options = {
        "workload": "w1", "bootstrap": "none:1", "topic": "none", "partitions": "4", "events": str(len(_URLS)),
        "answer": str(tmp_path / "answer"), "urls": str(tmp_path / "urls"),
        "postgres": "postgresql://postgres@/w4_1?host=%2Ftmp%2Fa%20folder",
    }  # fmt: skip
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        ["java", "-cp", str(classes), "peers.Probe", *arguments], capture_output=True, text=True, check=True
    )
    rows = [json.loads(line) for line in (tmp_path / "answer").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        [url, urlsplit(url).path, parse_qs(urlsplit(url).query).get("utm_campaign", [""])[0], 7]
        for url in _URLS
    ]
    clock = json.loads(done.stdout.removeprefix("RESULT "))
    assert 0 < clock["begin"] <= clock["end"]
    socket, tcp = done.stderr.splitlines()
    assert socket.startswith("jdbc:postgresql://localhost/w4_1?user=postgres&")
    assert socket.endswith("&socketFactoryArg=%2Ftmp%2Fa%20folder/.s.PGSQL.5432")
    assert tcp == "jdbc:postgresql://db.example:6543/clicks?user=ann&password=s3"


@pytest.mark.slow
def test_a_program_that_fails_says_why_and_ends_with_1(classes: Path) -> None:
    done = subprocess.run(
        ["java", "-cp", str(classes), "peers.Probe", "--workload", "w1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "--bootstrap is missing" in done.stderr and not done.stdout
