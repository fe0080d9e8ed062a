"""tools/model_pages.py: what the pages of the models say, where their links lead, and what becomes of old pages."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import generated  # noqa: E402 (needs the path)
import model_pages as tool  # noqa: E402

PAGES = dict(tool.pages())
ENGLISH = [path for path in PAGES if ".zh-CN" not in path.name]
LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)")
#: A row of the index, to the page that its id leads to.
ROW = re.compile(r"(?m)^\| \[`([^`]+)`\]\(([^)]+)\)")

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
#: A page that no model has.
STRAY = "gone.zh-CN.md"


def chinese(path: Path) -> Path:
    return path.with_name(f"{path.stem}.zh-CN.md")


def slugs(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"(?m)^#+ (.+)$", text)}


@each_page
def test_a_page_says_what_the_catalogue_says_today(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PAGES[path], "run: python tools/model_pages.py"


def test_there_is_a_page_for_each_file_of_the_catalogue_and_no_other() -> None:
    models = {path.stem for path in (ROOT / "catalog/models").glob("*.yml")}
    assert {path.name for path in tool.PAGES.iterdir()} == {
        f"{m}{suffix}.md" for m in models for suffix in tool.LANGUAGES
    }


@each_page
def test_links_of_a_page_lead_somewhere(path: Path) -> None:
    found = LINK.findall(PAGES[path])
    assert found
    for target, anchor in found:
        to = (path.parent / target).resolve()
        assert to.exists(), target
        if anchor:
            assert anchor in slugs(PAGES[to]), f"{target}#{anchor}"


@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.name)
def test_both_languages_say_the_same(path: Path) -> None:
    texts = PAGES[path], PAGES[chinese(path)]
    assert re.search(r"[\u4e00-\u9fff]", texts[1])
    # Each leads to the other.
    assert f"]({chinese(path).name})" in texts[0]
    assert f"]({path.name})" in texts[1]
    for pattern in (r"(?m)^#+ ", r"(?m)^(?=\|)", r"(?m)^- ", r"```"):
        assert len(re.findall(pattern, texts[0])) == len(re.findall(pattern, texts[1])), pattern
    ids = [re.findall(r"`[a-z0-9][\w.-]*`", text) for text in texts]
    assert sorted(ids[0]) == sorted(ids[1])
    targets = [sorted(target.replace(".zh-CN", "") for target, _ in LINK.findall(text)) for text in texts]
    # The link to the other language is of another name.
    assert targets[0] == targets[1]


# --- the index ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", tool.LANGUAGES)
def test_the_index_is_short_and_leads_to_each_model_by_preference(suffix: str) -> None:
    path = tool.DOCS / f"models{suffix}.md"
    assert len(PAGES[path]) <= 12_000
    rows = ROW.findall(PAGES[path])
    assert sorted(name for name, _ in rows) == sorted(tool.catalog.shipped())
    for name, target in rows:
        page = PAGES[(path.parent / target).resolve()]
        assert f"\n| `{name}` |" in page
        assert f"](../{path.name})" in page, "no way back to the index"
    places = tool.catalog.preference()
    order = [places.get(name, len(places)) for name, _ in rows]
    assert order == sorted(order)


def row(entry: dict[str, Any], suffix: str = "") -> str:
    """What the index says that an entry needs."""
    words: Any = tool.environment().get_template(f"words{suffix}.j2").module
    return str(words.need(tool.needs(entry)))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "CPU or GPU from 7.5"),
        ({"runs_on": ["cpu"]}, "CPU"),
        ({"runs_on": ["cpu"], "minimum_cpu": "amx"}, "CPU with AMX"),
        ({"minimum_cpu": "avx512", "minimum_compute_capability": 8}, "CPU with AVX-512 or GPU from 8.0"),
        ({"runs_on": ["cuda"], "minimum_cpu": "amx", "tensor_parallel_sizes": [1, 2]}, "GPU from 7.5"),
        ({"runs_on": ["cuda"], "tensor_parallel_sizes": [4, 8]}, "4 or 8 GPUs from 7.5"),
        ({"runs_on": ["cpu"], "chat_only": True}, "CPU; chat only"),
    ],
)
def test_what_a_model_needs_is_one_phrase(entry: dict[str, Any], said: str) -> None:
    assert row(entry) == said
    facts = re.compile(r"[\d.]+|CPU|GPU|AVX-512|AMX")
    assert sorted(facts.findall(row(entry, ".zh-CN"))) == sorted(facts.findall(said))


def test_a_sentence_that_has_no_translation_yet_is_named() -> None:
    words: Any = tool.environment().get_template("words.zh-CN.j2").module
    with pytest.raises(jinja2.UndefinedError, match="Ran for a day on four H100"):
        words.how_tried("Ran for a day on four H100.")


# --- the page of a model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tool.catalog.families())
@pytest.mark.parametrize("suffix", tool.LANGUAGES)
def test_a_page_holds_all_that_the_catalogue_claims(name: str, suffix: str) -> None:
    lines = PAGES[tool.PAGES / f"{name}{suffix}.md"].splitlines()
    for entry in tool.catalog.families()[name]:
        source = entry["source"]
        assert any(entry["title"] in line and source.get("revision", "") in line for line in lines)
        claims = [(*claim, kind) for kind in ("faults", "checked", "sources") for claim in getattr(tool, kind)(entry)]
        assert claims
        for first, second, _ in claims:
            about = [line for line in lines if tool.cell(first) in line and tool.cell(second) in line]
            # Without an id it stands for all of them.
            assert any(f"`{entry['id']}`" in line or "`" not in line.split(tool.cell(second))[0] for line in about), (
                first
            )


def test_a_claim_stands_once_with_the_ids_that_it_is_about() -> None:
    family = [
        {"id": "base", "checked": {"model": "Not run.", "weights": "1 byte.", "cpu": "Slow."}},
        {"id": "half", "checked": {"model": "Not run.", "weights": "2 bytes."}},
        {"id": "quarter", "checked": {"model": "Not run.", "weights": "2 bytes."}},
    ]
    assert tool.shared(family, tool.checked) == [
        ("model", "Not run.", []),
        ("weights", "1 byte.", ["base"]),
        ("weights", "2 bytes.", ["half", "quarter"]),
        ("cpu", "Slow.", ["base"]),
    ]


# --- writing and checking ----------------------------------------------------------------------------------------


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for pages in place of docs/, with all of them as they should be."""
    folder = tmp_path / "docs"
    (folder / "models").mkdir(parents=True)
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "DOCS", folder)
    monkeypatch.setattr(tool, "PAGES", folder / "models")
    monkeypatch.setattr(sys, "argv", ["model_pages.py"])
    assert tool.main() == 0
    return folder


def held(docs: Path) -> dict[str, str]:
    return {path.relative_to(docs).as_posix(): path.read_text(encoding="utf-8") for path in docs.rglob("*.md")}


def test_all_pages_are_written(docs: Path) -> None:
    assert held(docs) == {path.relative_to(ROOT / "docs").as_posix(): text for path, text in PAGES.items()}


def test_a_check_names_what_would_change_and_changes_nothing(
    docs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["model_pages.py", "--check"])
    capsys.readouterr()
    assert tool.main() == 0
    assert capsys.readouterr().out == ""
    (docs / "models" / STRAY).write_text("# gone\n")
    (docs / "models/loopback.md").write_text("# old\n")
    (docs / "models/glm-5.3.md").unlink()
    before = held(docs)
    assert tool.main() == 1
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"left over: docs/models/{STRAY}",
        "stale: docs/models/glm-5.3.md",
        "stale: docs/models/loopback.md",
    ]
    assert held(docs) == before


def test_pages_of_a_model_that_is_gone_are_removed(
    docs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (docs / "models/diagram.png").write_bytes(b"")
    (docs / "plan.md").write_text("# written by hand\n")
    families = {name: family for name, family in tool.catalog.families().items() if name != "minimax-m2.7"}
    monkeypatch.setattr(tool.catalog, "families", lambda: families)
    capsys.readouterr()
    assert tool.main() == 0
    said = capsys.readouterr().out.splitlines()
    assert {line for line in said if line.startswith("removed")} == {
        "removed: docs/models/minimax-m2.7.md",
        "removed: docs/models/minimax-m2.7.zh-CN.md",
    }
    assert "minimax-m2.7" not in (docs / "models.md").read_text(encoding="utf-8")
    # Only generated pages are the tool's.
    assert (docs / "models/diagram.png").exists()
    assert (docs / "plan.md").exists()
