"""HTML of a report: one self-contained page with a light and a dark theme."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b2027; --soft: #667080; --line: #e3e6eb;
  --good: #2ea061; --bad: #d64541; --accent: #2f7fe0; --track: #e9ecf1; }
@media (prefers-color-scheme: dark) { :root { --page: #12151a; --card: #1a1e25; --text: #e7eaef; --soft: #98a2b3;
  --line: #2a303a; --good: #3fbd77; --bad: #e5625e; --accent: #5b9df0; --track: #2a303a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 0 0 12px; }
.sub { color: var(--soft); margin: 6px 0 24px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px; margin: 16px 0; }
.scores { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 16px; }
.scores section { margin: 0; }
.label { color: var(--soft); font-size: 13px; font-weight: 600; }
.big { font-size: 60px; line-height: 1.1; font-weight: 700; letter-spacing: -.03em; font-variant-numeric: tabular-nums; }
.big small { font-size: 28px; font-weight: 600; letter-spacing: 0; margin-left: 4px; color: var(--soft); }
.track { position: relative; height: 8px; border-radius: 4px; background: var(--track); margin: 14px 0 8px; }
.track i { position: absolute; top: 0; bottom: 0; border-radius: 4px; background: var(--tone); opacity: .45; }
.track b { position: absolute; top: -3px; width: 4px; height: 14px; margin-left: -2px; border-radius: 2px; background: var(--tone); }
.policy { --tone: var(--accent); } .control { --tone: var(--soft); }
.note { color: var(--soft); font-size: 14px; margin: 10px 0 0; }
video, .strip { display: block; width: 100%; border-radius: 8px; }
.strip { margin-top: 16px; } figure { margin: 0; } .plot { overflow-x: auto; } .graph { background: #fff; border-radius: 6px; } svg + svg { margin-top: 18px; }
svg { width: 100%; height: auto; min-width: 560px; display: block; } svg text { font-family: inherit !important; }
.dots { display: flex; flex-wrap: wrap; gap: 4px; margin: 6px 0 14px; }
.dots span { width: 15px; height: 15px; border-radius: 4px; background: var(--good); }
.dots .lost { background: transparent; border: 2px solid var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 600; } th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; } tr:last-child td { border-bottom: 0; }
td.key { color: var(--soft); white-space: nowrap; vertical-align: top; width: 1%; padding-right: 24px; }
pre { margin: 0; overflow-x: auto; font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; } code span { white-space: nowrap; }
summary { cursor: pointer; color: var(--soft); font-size: 14px; } details > *:not(summary) { margin-top: 12px; }
.good { color: var(--good); } .bad { color: var(--bad); }
"""


def page(title: str, body: str) -> str:
    """Return a whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """Return a card with a heading."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def note(text: str) -> str:
    """Return a remark in small print."""
    return f'<p class="note">{escape(text)}</p>'


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table with text in the first column and numbers in the others."""
    kinds = ["", *[' class="n"'] * (len(header) - 1)]
    head = "".join(f"<th{kind}>{escape(cell)}</th>" for kind, cell in zip(kinds, header, strict=True))
    lines = (
        "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        for row in rows
    )
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def facts(rows: list[tuple[str, str, bool]]) -> str:
    """Return a table of keys and values; the third item of a row marks code."""
    lines = (
        f'<tr><td class="key">{escape(key)}</td><td>'
        + (f"<code>{_words(value)}</code>" if code else escape(value))
        + "</td></tr>"
        for key, value, code in rows
    )
    return f"<table>{''.join(lines)}</table>"


def _words(command: str) -> str:
    """Return a command with line breaks allowed only between words."""
    return " ".join(f"<span>{escape(word)}</span>" for word in command.split())


def embedded(path: Path, kind: str) -> str:
    """Return a file as a `data:` URL."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
