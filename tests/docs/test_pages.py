"""Written pages: links lead somewhere, named files and commands exist, figures are measured, programs run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers.report import format_table
from blora.engine.cli.main import build_parser, further_commands
from docs.generators.cli import commands_of

ROOT = Path(__file__).parent.parent.parent
WRITTEN = [*ROOT.glob("*.md"), ROOT / "bench/README.md", *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:engine|scheduler|adapters|proto|bench|tests|docs|examples)/[\w./*-]*)`")
COMMAND = "blora(?: [a-z_]+(?:-[a-z]+)*)+"
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
PERFORMANCE = (ROOT / "docs/performance.md").read_text()


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> Iterator[str]:
    for heading in HEADING.findall(without_code(page.read_text())):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", WRITTEN, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(without_code(page.read_text())):
        if not link.startswith(("http://", "https://")):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", WRITTEN, ids=relative)
def test_named_files_exist(page: Path) -> None:
    missing = [name for name in NAMED.findall(page.read_text()) if not list(ROOT.glob(name.rstrip("/")))]
    assert not missing


@pytest.mark.parametrize("page", WRITTEN, ids=relative)
def test_named_commands_exist(page: Path) -> None:
    """The words behind a command are its arguments."""
    known = {command.name for command in commands_of(build_parser(further_commands()))} | {"blora adapters"}
    named = commands_in(page.read_text())
    assert not [command for command in named if not any(f"{command} ".startswith(f"{name} ") for name in known)]


def commands_in(text: str) -> list[str]:
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL))
    return re.findall(f"`({COMMAND})", without_code(text)) + re.findall(f"^({COMMAND})", blocks, re.MULTILINE)


def test_an_installation_is_spelt_in_one_way() -> None:
    texts = [path.read_text() for path in [*WRITTEN, *(ROOT / "engine").rglob("*.py"), ROOT / "bench/cli.py"]]
    commands = [command for text in texts for command in re.findall(r"pip install [^\n`\"]*", text)]
    assert len(commands) > 5
    assert all(re.match(r"pip install ('\.\[\w+\]'|torch --index-url)", command) for command in commands), commands


def test_the_comparison_is_what_was_measured() -> None:
    assert format_table(json.loads((ROOT / "bench/results/peers.json").read_text())) in PERFORMANCE


@pytest.mark.slow
@pytest.mark.usefixtures("real_model")
def test_the_programs_of_the_pages_run() -> None:
    """Those that need no server, one after another in one process."""
    pages = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    programs = [program for page in pages for program in re.findall(r"```python\n(from .*?)```", page, re.DOTALL)]
    in_process = [program for program in programs if "client" not in program]
    assert len(in_process) >= 3
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # see tests/bench/test_demo.py
    command = [sys.executable, "-c", "\n".join(in_process)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "shop-sql: SELECT" in done.stdout
