"""Excerpts in the report's search, which opens from the file system.

Sphinx's search asks for each page that it found, to quote it; a browser refuses that to a page opened as a file, says
so in its console, and shows bare titles. So what there is to quote is written into one script, which is asked instead.
"""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

SCRIPT = "searchtexts.js"
# Pages of links, which have nothing to quote.
WITHOUT = {"search", "genindex", "py-modindex"}
_SILENT = {"script", "style", "summary"}  # no sentence of the article: labels of what folds among them
# Elements whose text stands apart from what comes after it.
_APART = {
    "p",
    "li",
    "td",
    "th",
    "dt",
    "dd",
    "div",
    "pre",
    "figcaption",
    "section",
    *(f"h{level}" for level in range(1, 7)),
}
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_HEAD = """// Written by decorlib.study.report.search: a page that was opened as a file may not ask for others.
"use strict";
const _texts = {};
window.fetch = (address) => {{
  const name = new URL(address, document.baseURI).pathname;
  const key = Object.keys(_texts).find((page) => name.endsWith(`/${{page}}.html`));
  return Promise.resolve({{ text: () => Promise.resolve(_texts[key] ?? "") }});
}};
"""


class _Article(HTMLParser):
    """What a page's article says: its sections, by the names that results lead to, and text in them, nothing else."""

    def __init__(self):
        super().__init__()
        self.parts: list[str] = []
        self.silent = self.inside = self.formula = 0

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag in _VOID:
            self.parts += [" "] if tag == "br" and self.inside and not self.silent else []
            return
        if tag == "article":
            self.inside += 1
        elif self.silent or tag in _SILENT or "headerlink" in (found.get("class") or ""):
            self.silent += 1
        elif tag == "math":
            self.formula += 1
        elif self.inside and tag == "section":
            self.parts.append(f'<section id="{html.escape(found.get("id") or "")}">')

    def handle_endtag(self, tag):
        if tag == "article":
            self.inside -= 1
        elif self.silent and tag not in _VOID:
            self.silent -= 1
        elif tag == "math":
            self.formula -= 1
        elif self.inside and tag in _APART:
            self.parts.append(" </section>" if tag == "section" else " ")

    def handle_data(self, data):
        if self.inside and not self.silent:
            # between the letters of a formula stand line breaks, for readers of the page's source
            self.parts.append(html.escape("".join(data.split()) if self.formula else data))


def text_of(page: str) -> str:
    """A page as the search needs it: sections and their text, without labels of what folds."""
    parser = _Article()
    parser.feed(page)
    parser.close()
    return re.sub(r"\s+", " ", "".join(parser.parts)).strip()


def write(output: Path) -> None:
    """Write the texts of all pages beside the search page, and let that load them before Sphinx's search."""
    search = output / "search.html"
    if not search.exists():
        return
    texts = {}
    for path in sorted(output.rglob("*.html")):
        name = path.relative_to(output).with_suffix("").as_posix()
        if name not in WITHOUT and not name.startswith("_static"):
            texts[name] = f'<div role="main">{text_of(path.read_text(encoding="utf-8"))}</div>'
    script = _HEAD.format(json.dumps(texts, ensure_ascii=False, indent=0).replace("</", "<\\/"))
    (output / SCRIPT).write_text(script, encoding="utf-8")
    page = search.read_text(encoding="utf-8")
    theirs = '<script src="_static/searchtools.js'
    if page.count(theirs) != 1:
        raise ValueError(f"search.html has no line {theirs!r}: Sphinx's search has changed")
    search.write_text(page.replace(theirs, f'<script src="{SCRIPT}"></script>\n  {theirs}'), encoding="utf-8")
