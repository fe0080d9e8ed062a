# MIT licence (see LICENSE)
"""What plan.py found, as lines for a terminal and as one HTML page. Runs on the controller."""

from __future__ import annotations

import html
import json
import textwrap
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import capacity

#: Columns of a terminal that the report takes at most.
WIDTH = 120

#: Heading of each column, and what the page says when a row becomes a card on a narrow screen.
COLUMNS = (
    ("model", "model"),
    ("fits", "fits"),
    ("TP", "split over"),
    ("context", "context"),
    ("64K", "sessions of 64K"),
    ("128K", "sessions of 128K"),
    ("decode", "decode, tokens/s"),
    ("prefill", "prefill, tokens/s"),
    ("1st turn", "first turn"),
    ("disk", "disk"),
    ("notes", "notes"),
)
#: Columns of figures.
NUMERIC = {4, 5, 6, 7, 8, 9}


def percent(share: float) -> str:
    """0.6 → 60 %."""
    return f"{100 * share:.0f} %"


def legend(developers: int) -> list[str]:
    """What the columns mean and what the figures rest on, once for all hosts."""
    decode, prefill = capacity.DECODE_EFFICIENCY, capacity.PREFILL_EFFICIENCY
    return [
        "TP: tensor_parallel_size (PP: pipeline_parallel_size). context: the max_model_len that one session gets. "
        "64K, 128K: sessions of that length whose KV cache fits at the same time.",
        "Speeds are estimates, not measurements: a roofline. decode: tokens/s of one session, from "
        f"{percent(decode['cuda'])} (CPU: {percent(decode['cpu'])}) of the memory's bandwidth and the bytes that a "
        f"token reads. prefill: tokens/s of a prompt, from {percent(prefill['cuda'])} (CPU: "
        f"{percent(prefill['cpu'])}) of the arithmetic and the operations that a token costs. 1st turn: reading "
        f"Claude Code's first prompt ({capacity.FIRST_PROMPT // 1000}K tokens) and writing {capacity.FIRST_ANSWER} "
        "tokens. The bandwidth and arithmetic reckoned with stand at each host; docs/plan.md says more.",
        f"Recommended for {developers} developer{'s' if developers != 1 else ''} (capacity_plan_developers). "
        "Nothing was changed on any host.",
    ]


def plain(value: Any) -> str:
    """Text of others in one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in str(value))


def shown(value: Any) -> str:
    """A flag's value as YAML would hold it."""
    return plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def rate(value: float | None) -> str:
    """Tokens a second."""
    if value is None:
        return "?"
    return f"{value:.1f}" if value < 10 else f"{value:.0f}" if value < 1000 else f"{round(value, -2):.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "?"
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def split(row: dict[str, Any]) -> str:
    """`4`, or `4 PP 2`."""
    stages = row.get("pipeline_parallel_size") or 1
    return f"{row.get('tensor_parallel_size') or 1}" + (f" PP {stages}" if stages > 1 else "")


def disk(row: dict[str, Any]) -> str:
    """What the weights take on disk."""
    return f"{row['disk_gib']:.1f} GiB" if row["disk_gib"] else "?"


def cells(row: dict[str, Any], numbers: dict[str, int]) -> list[str]:
    """A row of the table, by COLUMNS."""
    notes = " ".join(map(str, sorted(numbers[note] for note in row["notes"])))
    if not row["fits"]:
        return [plain(row["model"]), "no", *[""] * 7, disk(row), notes]
    sessions = [row["sessions"].get(tokens) or 0 for tokens in capacity.CONTEXTS]
    return [
        plain(row["model"]),
        "yes",
        split(row),
        capacity.thousands(row["max_model_len"]),
        *(str(count) if count else "–" for count in sessions),
        rate(row["decode"]),
        rate(row["prefill"]),
        duration(row["first_turn"]),
        disk(row),
        notes,
    ]


def numbered(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Each note of the rows with a number, so that it is written out once."""
    notes = dict.fromkeys(note for row in rows for note in row["notes"])
    return {note: number for number, note in enumerate(notes, 1)}


def reason(row: dict[str, Any]) -> str:
    """Why a model does not fit: the first reason, and the way out."""
    ways = [text for text in row["why"][1:] if text.startswith("→")]
    return plain(" ".join([*row["why"][:1], *ways]))


def lies(found: dict[str, Any]) -> str:
    """The figures behind an assessment, in a sentence."""
    if not found:
        return "This machine's capacity is not known."
    if not found["known"]:
        return f"Whether it fits is not known: {'; '.join(found['why'])}."
    if "weights" not in found:
        return f"Does not fit: {'; '.join(found['why'])}."
    used = len(found["devices"])
    unit = "GPU" if found["kind"] == "cuda" else "NUMA node"
    sessions = found["sessions"].get(capacity.MIN_CONTEXT) or 0
    text = (
        f"{capacity.gib(found['weights'])} weights + {capacity.gib(found['kv_cache_memory_bytes'])} KV cache + "
        f"{capacity.gib(found['overhead'])} runtime"
        + (f" on each of {used} {unit}s" if used > 1 else "")
        + f", of {capacity.gib(max(found['budget'], 0))} to be had"
    )
    if not found["fits"]:
        return f"Does not fit: {'; '.join(found['why'])}."
    if sessions:
        text += f"; {sessions} session{'s' if sessions != 1 else ''} of 64K"
    if found["decode"]:
        text += f"; about {rate(found['decode'])} tokens/s for one session, first turn {duration(found['first_turn'])}"
    return text + "."


def suggestion(chosen: dict[str, Any]) -> list[str]:
    """The lines for vllm_instances."""
    lines = []
    for at, (name, value) in enumerate(chosen["instance"].items()):
        lines.append(f"{'    ' if at else '  - '}{name}: {shown(value)}")
    return ["vllm_instances:", *lines]


def nothing_asked(host: dict[str, Any]) -> str:
    """What to say where the inventory has no instances."""
    if host["described"] or any(item["variable"] == "vllm_instances" for item in host["problems"]):
        return ""
    return "The inventory asks for nothing on this host yet: vllm_instances is not set."


def trouble(found: list[dict[str, Any]]) -> list[str]:
    """Problems, a line each; the host stands above."""
    lines = []
    for item in found:
        subject = item["variable"] if item["value"] is None else f"{item['variable']} = {item['value']}"
        lines.append(plain(f"{subject}: {item['problem']} → {item['fix']}"))
    return lines


# --- the terminal ------------------------------------------------------------------------------------------------


def wrapped(text: str, indent: str, more: str = "") -> list[str]:
    """Lines of at most WIDTH columns; a mark before the text stands in the first alone."""
    return textwrap.wrap(
        plain(text),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent.replace("!", " ") + more,
        break_on_hyphens=False,
    )


def aligned(rows: list[list[str]], right: set[int], indent: str) -> list[str]:
    """Rows in columns, as wide as they need to be."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        (
            indent
            + "  ".join(
                cell.rjust(width) if at in right else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in rows
    ]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The models of a host, each reason in the line below its model, each note once below them all."""
    numbers = numbered(rows)
    table = aligned(
        [[heading for heading, _long in COLUMNS], *(cells(row, numbers) for row in rows)], {4, 5, 6, 7, 8, 9}, "  "
    )
    lines = [table[0]]
    for row, line in zip(rows, table[1:], strict=True):
        lines.append(line)
        if not row["fits"]:
            lines += wrapped(reason(row), "    ", "  ")
    for note, number in numbers.items():
        lines += wrapped(f"{number}: {note}", "  ", "   ")
    return lines


def flag_lines(instance: dict[str, Any]) -> list[str]:
    """Flags with value and origin, aligned; what is too long for its column gets lines of its own."""
    rows = [("--" + item["flag"].replace("_", "-"), shown(item["value"]), item["origin"]) for item in instance["flags"]]
    rows += [(name, shown(value), "environment") for name, value in instance["environment"].items()]
    name_width = max(len(name) for name, _value, _origin in rows)
    room = WIDTH - 6 - name_width - max(len(origin) for _name, _value, origin in rows) - 4
    room = max(20, min(room, max(len(value) for _name, value, _origin in rows)))
    lines = []
    for name, value, origin in rows:
        pieces = textwrap.wrap(value, room, break_on_hyphens=False) or [""]
        lines.append(f"      {name.ljust(name_width)}  {pieces[0].ljust(room)}  {origin}")
        lines += [f"      {' ' * name_width}  {piece}" for piece in pieces[1:]]
    return lines


def instance_lines(instance: dict[str, Any]) -> list[str]:
    """What the inventory asks, and what comes of it."""
    lines = [f"    {plain(instance['name'])}: {plain(instance['model'])}"]
    for line in trouble(instance["problems"]):
        lines += wrapped(line, "      ! ", "  ")
    if instance["flags"]:
        lines += wrapped(lies(instance["assessment"]), "      ")
        lines += flag_lines(instance)
    return lines


def host_lines(host: dict[str, Any]) -> list[str]:
    """One host."""
    title = plain(host["host"])
    if host.get("error"):
        return ["", title, *wrapped(host["error"], "  ")]
    if isinstance(host["described"], str):
        title += f": {plain(host['described'])}"
    lines = ["", title]
    for line in host["hardware"]:
        lines += wrapped(line, "  ", "  ")
    for line in host["assumed"]:
        lines += wrapped(f"assumed: {line}", "  ", "  ")
    for line in host["notes"]:
        lines += wrapped(f"note: {line}", "  ", "  ")
    if host["models"]:
        lines += ["", *table(host["models"])]
    chosen = host["recommended"]
    if chosen:
        lines += ["", f"  Recommended: {plain(chosen['model'])}", *wrapped(chosen["why"], "    ")]
        lines += ["    " + line for line in suggestion(chosen)]
    elif host["models"]:
        lines += ["", "  Recommended: nothing. No model of the catalogue with tool calls has room for 64K here."]
    for line in trouble(host["problems"]):
        lines += wrapped(line, "  ! ", "  ")
    if host["instances"]:
        lines += ["", "  What the inventory asks"]
        for instance in host["instances"]:
            lines += instance_lines(instance)
    elif nothing_asked(host):
        lines += ["", *wrapped(nothing_asked(host), "  ")]
    return lines


def text(plan: dict[str, Any]) -> list[str]:
    """The whole report."""
    lines = [line for host in plan["hosts"] for line in host_lines(host)]
    lines.append("")
    for line in legend(plan["developers"]):
        lines += wrapped(line, "")
    return [*lines, ""]


# --- the page ----------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6470; --paper: #fff; --band: #f4f5f7; --line: #d9dde2;
  --yes: #1a7f45; --no: #b3362b; --mark: #eaf3ff; --edge: #2f6fd0 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4af; --paper: #15181b; --band: #1e2226;
  --line: #353b42; --yes: #5cc98a; --no: #f08a80; --mark: #18263a; --edge: #6ea4f0 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.6rem; margin: 0 0 .5rem } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--line) } h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem }
p, ul, ol, pre { margin: .4rem 0 } ul, ol { padding-left: 1.3rem }
.soft, small { color: var(--soft) } small { font-size: .85rem }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .5rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600; background: var(--band) }
.n { text-align: right; white-space: nowrap } td:first-child { font-weight: 600; white-space: nowrap }
.yes { color: var(--yes); font-weight: 600 } .no { color: var(--no); font-weight: 600 }
tr.chosen td { background: var(--mark) }
td.why, td.value, td.origin { overflow-wrap: anywhere }
code, pre, td.value { font-family: ui-monospace, monospace; font-size: .85rem }
.box { background: var(--mark); border-left: 4px solid var(--edge); padding: .6rem 1rem; margin: 1rem 0 }
.bad { background: var(--band); border-left: 4px solid var(--no); padding: .6rem 1rem; margin: 1rem 0 }
pre { background: var(--band); padding: .6rem .8rem; white-space: pre-wrap }
@media screen and (max-width: 50rem) {
  table, tbody, tr, td { display: block; width: 100% } thead { display: none }
  tr { border: 1px solid var(--line); border-radius: .4rem; margin: .6rem 0; overflow: hidden }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .2rem .7rem; text-align: right }
  td::before { content: attr(data-of); color: var(--soft); text-align: left; flex: none;
    font: .88rem system-ui, sans-serif }
  td:first-child { background: var(--band); padding: .4rem .7rem; text-align: left; white-space: normal }
  td:first-child::before, td:empty { display: none } td.why, td.value { text-align: left }
}
@media print { html { font-size: 11px } body { max-width: none; padding: 0; font-size: 11px }
  tr, .box, .bad { break-inside: avoid }
  h2, h3 { break-after: avoid } @page { size: A4 landscape; margin: 12mm } }
"""


def escape(value: Any) -> str:
    """Text of others, harmless in HTML."""
    return html.escape(plain(value))


def cell(of: str, text: str, kind: str = "", **more: Any) -> str:
    """A table's cell; `of` names it where a row is shown as a card."""
    attributes = "".join(f' {name}="{value}"' for name, value in more.items())
    return f'<td data-of="{escape(of)}"' + (f' class="{kind}"' if kind else "") + f"{attributes}>{escape(text)}</td>"


def items(lines: list[str], tag: str = "ul") -> str:
    """A list."""
    return f"<{tag}>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + f"</{tag}>" if lines else ""


def models_table(host: dict[str, Any]) -> str:
    """The table of models."""
    rows = host["models"]
    numbers = numbered(rows)
    chosen = (host["recommended"] or {}).get("model")
    head = "".join(
        f'<th class="n">{escape(short)}</th>' if at in NUMERIC else f"<th>{escape(short)}</th>"
        for at, (short, _long) in enumerate(COLUMNS)
    )
    body = []
    for row in rows:
        texts = cells(row, numbers)
        of = [long for _short, long in COLUMNS]
        line = cell(of[0], texts[0])
        if row["fits"]:
            line += cell(of[1], "yes", "yes")
            line += "".join(cell(of[at], texts[at], "n" if at in NUMERIC else "") for at in range(2, len(COLUMNS)))
        else:
            line += cell(of[1], "no", "no") + cell("why", reason(row), "why", colspan=7)
            line += cell(of[9], texts[9], "n") + cell(of[10], texts[10])
        body.append(f'<tr class="chosen">{line}</tr>' if row["model"] == chosen else f"<tr>{line}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>" + items(list(numbers), "ol")


def instance_section(instance: dict[str, Any]) -> str:
    """What the inventory asks, and what comes of it."""
    parts = [f"<h3>What the inventory asks: {escape(instance['name'])}, {escape(instance['model'])}</h3>"]
    if instance["problems"]:
        parts.append(f'<div class="bad">{items(trouble(instance["problems"]))}</div>')
    if instance["flags"]:
        parts.append(f"<p>{escape(lies(instance['assessment']))}</p>")
        rows = [
            cell("flag", "--" + item["flag"].replace("_", "-"))
            + cell("value", shown(item["value"]), "value")
            + cell("from", item["origin"], "origin")
            for item in instance["flags"]
        ]
        rows += [
            cell("flag", name) + cell("value", shown(value), "value") + cell("from", "environment")
            for name, value in instance["environment"].items()
        ]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        parts.append(
            f"<table><thead><tr><th>flag</th><th>value</th><th>from</th></tr></thead><tbody>{body}</tbody></table>"
        )
    return "".join(parts)


def host_section(host: dict[str, Any]) -> str:
    """One host."""
    title = f"<h2>{escape(host['host'])}</h2>"
    if host.get("error"):
        return title + f'<div class="bad">{escape(host["error"])}</div>'
    parts = [title]
    if isinstance(host["described"], str):
        parts.append(f'<p class="soft">{escape(host["described"])}</p>')
    assumed = [f"assumed: {line}" for line in host["assumed"]] + [f"note: {line}" for line in host["notes"]]
    parts.append(items([*host["hardware"], *assumed]))
    chosen = host["recommended"]
    if chosen:
        lines = "\n".join(escape(line) for line in suggestion(chosen))
        parts.append(
            f'<div class="box"><strong>Recommended: {escape(chosen["model"])}</strong>'
            f"<p>{escape(chosen['why'])}</p><pre>{lines}</pre></div>"
        )
    elif host["models"]:
        parts.append('<div class="bad">No model of the catalogue with tool calls has room for 64K here.</div>')
    if host["models"]:
        parts.append(models_table(host))
    if host["problems"]:
        parts.append(f'<div class="bad">{items(trouble(host["problems"]))}</div>')
    parts += [instance_section(instance) for instance in host["instances"]]
    if not host["instances"] and nothing_asked(host):
        parts.append(f'<p class="soft">{escape(nothing_asked(host))}</p>')
    return "".join(parts)


def page(plan: dict[str, Any]) -> str:
    """The whole report as one file that needs nothing else."""
    sections = "".join(host_section(host) for host in plan["hosts"])
    notes = "".join(f"<p><small>{escape(line)}</small></p>" for line in legend(plan["developers"]))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>What fits</title>'
        f"<style>{STYLE}</style></head><body><h1>What fits</h1>{sections}<h2>How to read this</h2>"
        f"{notes}</body></html>\n"
    )
