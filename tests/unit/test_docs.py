"""The pages: sizes, both languages, links and anchors, indexes, and samples that are what the programs say today."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from test_plan import lines as report
from test_plan import planned
from test_repository import ROOT, tracked

DOCS = ROOT / "docs"
#: Pages that tools/model_pages.py makes from the catalogue. They are tables, and say little in the page's language.
MADE = re.compile(r"docs/(models|model-entry)[/.]")
CHINESE = ".zh-CN.md"
LIMIT = 6000

ENGLISH = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if not path.name.endswith(CHINESE))]
PAGES = [*ENGLISH, *sorted([ROOT / "README.zh-CN.md", *DOCS.rglob("*" + CHINESE)])]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?\n(.*?)^ *```\s*?$", re.M | re.S)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def chinese(page: Path) -> Path:
    return page.with_name(page.name.removesuffix(".md") + CHINESE)


def english(page: Path) -> Path:
    return page.with_name(page.name.removesuffix(CHINESE) + ".md") if page.name.endswith(CHINESE) else page


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def code(page: Path) -> list[str]:
    """Blocks of code without comments, which are in the language of the page."""
    return [re.sub(r"\s*#(?!\d).*", "", block) for block in FENCE.findall(page.read_text(encoding="utf-8"))]


def headings(page: Path) -> list[tuple[int, str]]:
    return [(len(marks), text) for marks, text in re.findall(r"(?m)^(#+) (.+)$", prose(page))]


def anchors(page: Path) -> list[str]:
    """The anchors that GitHub gives to the headings, in their order."""
    seen: Counter[str] = Counter()
    found = []
    for _, text in headings(page):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        found.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(page: Path) -> list[str]:
    return LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page)))


def targets(page: Path) -> list[tuple[Path, str]]:
    """Links to files of the repository, with their anchors."""
    found = []
    for link in links(page):
        if not re.match(r"\w+:", link):
            path, _, anchor = link.partition("#")
            found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


def meant(page: Path) -> list[str]:
    """What links mean in either language: the English page and the heading's number; other addresses as they are."""
    found = [link for link in links(page) if re.match(r"\w+:", link)]
    for target, anchor in targets(page):
        at = f"#{anchors(target).index(anchor)}" if anchor and anchor in anchors(target) else ""
        found.append(name(english(target)) + at)
    return sorted(found)


def tables(page: Path) -> list[int]:
    """Rows of each table."""
    return [len(table.splitlines()) for table in re.findall(r"(?:^ *\|.*\n)+", prose(page) + "\n", re.M)]


def missing(page: Path) -> list[str]:
    """Links that lead nowhere."""
    wrong = []
    for target, anchor in targets(page):
        if not target.exists():
            wrong.append(f"there is no {target}")
        elif anchor and (target.is_dir() or anchor not in anchors(target)):
            wrong.append(f"{name(target)} has no heading #{anchor}")
    return wrong


# --- sizes and readers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_readme_is_one_screen(page: str) -> None:
    assert len((ROOT / page).read_text(encoding="utf-8")) <= LIMIT, "move what is new to a page of docs/"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.is_relative_to(DOCS) and not MADE.match(name(page))], ids=name
)
def test_the_first_sentence_says_whom_a_page_is_for(page: Path) -> None:
    paragraphs = prose(page).split("\n\n")
    assert paragraphs[0].startswith("# ")
    assert paragraphs[1].startswith("["), "the second paragraph leads to other pages"
    begin = "本页面向" if page.name.endswith(CHINESE) else "This page is for people "
    assert paragraphs[2].startswith(begin), paragraphs[2][:80]


# --- both languages ----------------------------------------------------------------------------------------------


def test_every_page_is_there_in_both_languages() -> None:
    assert {name(chinese(page)) for page in ENGLISH} == {name(page) for page in PAGES} - {
        name(page) for page in ENGLISH
    }


@pytest.mark.parametrize("page", ENGLISH, ids=name)
def test_both_languages_say_the_same(page: Path) -> None:
    other = chinese(page)
    assert [level for level, _ in headings(page)] == [level for level, _ in headings(other)]
    assert code(page) == code(other)
    assert tables(page) == tables(other)
    assert meant(page) == meant(other)
    for pattern in (r"<!-- .* -->", r"(?m)^ *\d+\. ", r"(?m)^ *- "):
        assert len(re.findall(pattern, prose(page))) == len(re.findall(pattern, prose(other))), pattern


@pytest.mark.parametrize("page", [chinese(page) for page in ENGLISH], ids=name)
def test_a_chinese_page_is_chinese_and_leads_to_chinese_pages(page: Path) -> None:
    assert len(re.findall(r"[\u4e00-\u9fff]", prose(page))) > (40 if MADE.match(name(page)) else 200)
    own = english(page)
    wrong = [name(target) for target, _ in targets(page) if target != own and target != page and chinese_exists(target)]
    assert not wrong, wrong


def chinese_exists(target: Path) -> bool:
    return target.suffix == ".md" and not target.name.endswith(CHINESE) and chinese(target).exists()


# --- links -------------------------------------------------------------------------------------------------------


def test_links_and_anchors_of_all_markdown_lead_somewhere() -> None:
    wrong = [f"{name(page)}: {why}" for page in tracked() if page.suffix == ".md" for why in missing(page)]
    assert not wrong, "\n".join(wrong)


def test_pages_that_programs_and_settings_name_are_there() -> None:
    """Messages, comments and help name pages as docs/….md."""
    wrong = []
    for path in tracked():
        if path.is_symlink() or not path.is_file() or path.suffix == ".md" or path == Path(__file__):
            continue
        for page in re.findall(r"(?<![\w/.])docs/[\w/.-]+\.md\b", path.read_text(encoding="utf-8", errors="ignore")):
            if not (ROOT / page).exists():
                wrong.append(f"{name(path)}: {page}")
    assert not wrong, "\n".join(wrong)


def index_of(page: Path) -> Path:
    """Where a page is listed: in the README of its folder, or in the page that has the folder's name."""
    if page.name == "README.md":
        return DOCS / "README.md"
    own = page.parent / "README.md"
    return own if own.exists() else page.parent.with_suffix(".md")


@pytest.mark.parametrize("page", [page for page in ENGLISH if page.is_relative_to(DOCS)], ids=name)
def test_every_page_is_in_its_index(page: Path) -> None:
    index = index_of(page)
    assert page == index or page in [target for target, _ in targets(index)], (
        f"{name(index)} does not list {name(page)}"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[here](gone.md)", "there is no "),
        ("[here](#gone)", "has no heading #gone"),
        ("[here](README.md#gone)", "has no heading #gone"),
        ("[here](\nREADME.md)", ""),
        ("[here](https://gone.example/page#gone)", ""),
        ("`[here](gone.md)`\n\n```\n[here](gone.md)\n# heading\n```", ""),
        ("[here](#a-heading-1)", ""),
        ("[here](#heading)", "has no heading #heading"),
    ],
)
def test_a_dead_link_is_seen(text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("# Another\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(f"# A heading\n\n## A `heading`!\n\n{text}\n", encoding="utf-8")
    found = missing(page)
    assert why in found[0] if why else not found


# --- samples -----------------------------------------------------------------------------------------------------


def sample(page: str, mark: str) -> list[str]:
    """Lines of the block of code that has this mark."""
    (block,) = [block for block in FENCE.findall((ROOT / page).read_text(encoding="utf-8")) if mark in block]
    return [line for line in str(block).splitlines() if line]


def test_the_end_of_the_demo_is_what_the_demo_says() -> None:
    lines = sample("README.md", "The demo is up")
    seconds, version = (re.search(pattern, "\n".join(lines)) for pattern in (r"after (\d+) s", r"Claude Code (\S+)"))
    assert seconds
    assert version
    script = (ROOT / "run").read_text(encoding="utf-8")
    (function,) = re.findall(r"^demo_message\(\) \{\n.*?^\}\n", script, re.M | re.S)
    docker = f'docker() {{ echo "{version.group(1)} (Claude Code)"; }}'
    said = subprocess.run(
        ["bash", "-euc", f"{docker}\n{function}demo_message 4000 {seconds.group(1)}"],
        env={"PATH": os.environ["PATH"], "demo": "/.cache/demo", "host": "modelhost-demo", "bold": "", "plain": ""},
        cwd="/", capture_output=True, text=True, check=True,
    ).stdout.replace("/.cache/", ".cache/").splitlines()  # fmt: skip
    assert [line for line in lines if line not in said] == []


def test_the_plan_in_the_readme_is_what_the_plan_says() -> None:
    said = report(planned("4× H20")).splitlines()
    assert [line for line in sample("README.md", "1st turn") if line not in said] == [], (
        'copy lines of ./run plan "4× H20"'
    )


# --- messages ----------------------------------------------------------------------------------------------------

#: What other programs say: vLLM and what it loads, uv, systemd, the kernel, hubs, Claude Code, HTTP.
FOREIGN = {
    *("401", "404", "429", "Retry-After", "oom-kill", "nvidia-smi", "nvcc", "cicc"),
    *("CUDA … error 802", "system not yet initialized", "NCCL error", "UVA is not available"),
    *("Could not find nvcc", "NVCC compiler is not executable", "Failed to find C compiler", "Python.h: No such file"),
    *("unrecognized arguments: --rope-scaling", "not divisible by weight quantization block_n"),
    "The input size is not aligned with the quantized weight shape",
    "Free memory on device … is less than desired GPU memory utilization",
    "error downloading or loading vocab file",
    "No solution found … torch==…+cpu",
    *("Start request repeated too quickly", "start operation timed out"),
    *("Repository Not Found", "Qwen/Qwen3-235B-A22B-Instruct"),
    "Prompt is too long",
}


def messages(page: Path) -> list[str]:
    """Every message in the first column of the table."""
    first = [row.split(" | ")[0] for row in page.read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    return [message for cell in first for message in re.findall(r"`([^`]+)`", cell)]


def said_by_us() -> str:
    """Our programs' texts, with strings that go over several lines joined."""
    places = ("plugins", "roles", "playbooks", "tools", "run")
    files = [path for path in tracked() if name(path).split("/")[0] in places and path.suffix in {"", ".py", ".yml"}]
    texts = "".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
    return " ".join(re.sub(r"[\"']\s*\n\s*f?[\"']", "", texts).split())


def test_messages_are_those_that_programs_say() -> None:
    """A person finds a message by its words, so they must be the words of today."""
    ours = said_by_us()
    found = messages(DOCS / "troubleshooting.md")
    assert set(found) >= FOREIGN
    wrong = []
    for message in set(found) - FOREIGN:
        # What a message fills in, or shows as an example.
        parts = [part.strip() for part in re.split(r"…|[\d.]+(?: GiB)?|\(s\)", message)]
        parts = [part for part in parts if len(part) > 5]
        assert parts, f"{message}: nothing to look for"
        wrong += [f"{message}: nobody says {part!r}" for part in parts if part not in ours]
    assert not wrong, "\n".join(wrong)


def test_both_languages_have_the_same_messages() -> None:
    page = DOCS / "troubleshooting.md"
    assert sorted(messages(page)) == sorted(messages(chinese(page)))
