"""Pages of results: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; margin: .5rem 0 2rem; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left }
.ours { background: #eaf4fb } svg { max-width: 100%; height: auto; font: 13px system-ui, sans-serif }
"""


def document(title: str, lead: str, parts: Sequence[str]) -> str:
    """A page of parts in HTML behind a title and plain text that leads in."""
    head = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">', f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style></head><body>", f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>",
    ]  # fmt: skip
    return "\n".join([*head, *parts, "</body></html>", ""])


def table(head: Sequence[str], body: Sequence[tuple[bool, Sequence[str]]]) -> str:
    """Rows of plain text; the ones that are marked stand out."""
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for ours, cells in body:
        mark = ' class="ours"' if ours else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</table>"])
