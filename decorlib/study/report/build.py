"""Build the report from results that exist: ``python -m decorlib.study.report.build``, or ``make report``.

docs/ is copied to build/, the executed notebooks and what is generated from records are put beside it, and Sphinx
turns all of it into pages that open from the file system without a network. Warnings are errors: a broken link, a
formula that cannot be shown or a figure without alternative text stops the build, and the old report stays.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import EXTENDED, RecordDamaged, dumps, write_atomic
from decorlib.study.report import api_pages, freshness, pages, request, search
from decorlib.study.report.pages import ReportError
from decorlib.study.report.publish import one_at_a_time

PAGE_LIMIT, SITE_LIMIT = 2_000_000, 15_000_000  # bytes: of a page with its images, and of all results
# Names for screen readers that the theme leaves out, or that differ from what is to be seen (found by axe-core).
_FIELD = 'class="btn search-button-field search-button__button pst-js-only" title="Search"'
NAMES = (
    ('<summary><span class="toctree-toggle"', '<summary aria-label="pages below"><span class="toctree-toggle"'),
    ('<summary aria-label="Toggle hidden content">', "<summary>"),
    (f'{_FIELD} aria-label="Search"', _FIELD),
)
# What a page of text and figures has no use for; the theme's own scripts lie outside of the article.
_ACTIVE = {"script", "iframe", "frame", "object", "embed", "applet", "form", "input", "base", "meta", "link", "svg"}
_ACTIVE_URL = re.compile(r"[\s\x00-\x1f]*(javascript|vbscript|data:text)", re.I)
_REMOTE = re.compile(r"""<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)=["'](?:https?:)?//[^"']+""")


def state(root: Path, results: Path) -> dict[str, str]:
    """Hashes of everything the report is made of."""
    found = {f"docs/{name}": value for name, value in freshness.digests(root / "docs").items()}
    for part in (results / "notebooks", results / "records", root / EXTENDED / "records"):
        name = Path(os.path.relpath(part, root)).as_posix()
        found.update({f"{name}/{file}": value for file, value in freshness.digests(part).items()})
    # Docstrings are pages too, so here the whole text of the sources counts.
    sources = freshness.digests(freshness.PACKAGE).items()
    found.update({f"decorlib/{name}": value for name, value in sources if name.endswith(".py")})
    for package in ("sphinx", "myst-nb", "sphinx-book-theme"):
        found[package] = version(package)
    return found


def build(root: Path, results: Path, build_folder: Path, force: bool = False) -> bool:
    """Build ``results/report`` where something changed; False, with the reason printed, when it cannot be built."""
    site, stamp = results / "report", build_folder / "report.json"
    now = {"inputs": state(root, results), "site": freshness.digests(site)}
    if not force and site.exists() and _read(stamp) == now:
        print("report: nothing to be done")
        return True
    begin = time.perf_counter()
    sources, output = build_folder / "docs", build_folder / "html"
    shutil.rmtree(sources, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    try:
        shutil.copytree(root / "docs", sources, ignore=shutil.ignore_patterns("__pycache__"))
        count = pages.write_sources(root, results, sources)
        api_pages.write(sources)
        settings = {
            "DECORLIB_CLONE": str(root),
            "DECORLIB_TO_CLONE": pages.way(site / "api", root),
        }
        run_sphinx(sources, output, build_folder / "doctrees", settings)
        prune(output)
        search.write(output)
        check(output, root)
        replace(output, site)
        now["site"] = freshness.digests(site)
        write_atomic(stamp, dumps(now).encode())
    except (ReportError, RecordDamaged) as error:
        print(f"report: {error}", file=sys.stderr)
        return False
    except OSError as error:
        print(f"report: {error}: free space there or make it writable, and call again", file=sys.stderr)
        return False
    size = sum(path.stat().st_size for path in results.rglob("*") if path.is_file())
    print(
        f"report: {count} notebook(s), {time.perf_counter() - begin:.0f} s; all results {size / 1e6:.1f} MB; "
        f"open {os.path.relpath(site / 'index.html')}"
    )
    return True


def _read(stamp: Path) -> dict | None:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def run_sphinx(sources: Path, output: Path, doctrees: Path, settings: dict[str, str]) -> None:
    """Sphinx in its own process, because it imports the modules it documents and sets global state."""
    # -E: what Sphinx kept of the last build does not know of changes in the functions of conf.py.
    command = [sys.executable, "-m", "sphinx", "-E", "-W", "--keep-going", "-q", "-b", "html", "-d", str(doctrees)]
    # Sphinx writes the date of SOURCE_DATE_EPOCH, not of today: equal sources give equal pages.
    env = {**os.environ, "SOURCE_DATE_EPOCH": "0", "PYTHONHASHSEED": "0", **settings}
    done = subprocess.run([*command, str(sources), str(output)], capture_output=True, text=True, env=env)
    if done.returncode:
        raise ReportError(f"Sphinx found errors, the report was not replaced:\n{done.stderr.strip()}")


def prune(output: Path) -> None:
    """Remove what no page needs: source maps, build information, notebook sources (results/ has them)."""
    for pattern in ("**/*.map", ".buildinfo*", "objects.inv", "_static/locales"):
        for path in output.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    shutil.rmtree(output / "_sources", ignore_errors=True)
    shutil.rmtree(output.parent / "jupyter_execute", ignore_errors=True)  # myst-nb puts it beside
    for page in output.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for theirs, ours in NAMES:
            text = text.replace(theirs, ours)
        page.write_text(long_names(text), encoding="utf-8")
    icons = output / "_static" / "scripts" / "fontawesome.js"
    if icons.exists():
        text = "".join(path.read_text(encoding="utf-8") for path in output.rglob("*.html"))
        text += "".join(p.read_text(encoding="utf-8") for p in output.rglob("*.js") if p != icons)
        used = set(re.findall(r"\bfa-([a-z0-9-]+)", text))
        icons.write_text(keep_icons(icons.read_text(encoding="utf-8"), used), encoding="utf-8")


def long_names(text: str) -> str:
    """A page whose long names in code may break after a dot, a stroke or a line under, not in the middle of a word."""

    def parted(match: re.Match) -> str:
        return match[1] + re.sub(r"(?<=[\w)\]])([_./:=(,]+)(?=\w)", r"\1<wbr>", match[2]) + match[3]

    return re.sub(r'(<code class="[^"]*"><span class="pre">)([^<&]{12,})(</span>)', parted, text)


def keep_icons(script: str, used: set[str]) -> str:
    """The theme's icon script with the icons that pages use: 0.1 MB instead of 1.6."""
    icon = r"""(?<=[{,])"?([\w-]+)"?:\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?"""
    return re.sub(icon, lambda match: match.group(0) if match.group(1) in used else "", script)


class _Active(HTMLParser):
    """Collects what a browser would execute: elements inside the article, event handlers and script URLs anywhere."""

    def __init__(self):
        super().__init__()
        self.articles, self.found = 0, []

    def handle_starttag(self, tag, attrs):
        self.articles += tag == "article"
        if self.articles and tag in _ACTIVE:
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            if name.startswith("on") or name == "srcdoc" or _ACTIVE_URL.match(re.sub(r"\s", "", value or "")):
                self.found.append(f"<{tag} {name}={value!r}>")

    def handle_endtag(self, tag):
        self.articles -= tag == "article"


def active(text: str) -> list[str]:
    """Elements, attributes and addresses of a page that would execute something and are not the theme's."""
    parser = _Active()
    parser.feed(text)
    parser.close()
    return parser.found


def check(output: Path, root: Path) -> None:
    """No page executes what it shows, asks the network, has an image without text, is too large, or names `root`.

    Raises:
        ReportError: with every offence.
    """
    wrong = []
    for page in sorted(output.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(output)
        wrong += [f"{name} loads {found!r} from the network" for found in _REMOTE.findall(text)]
        wrong += [f"{name} has active content, {found[:120]}: show it as text" for found in active(text)]
        images = re.findall(r"<img\b[^>]*>", text)
        wrong += [f"{name}: no alternative text in {i[:120]}" for i in images if not re.search(r'alt="[^"]', i)]
        used = {(page.parent / src).resolve() for src in re.findall(r'<img\b[^>]*?src="([^"]+)"', text)}
        wrong += [f"{name}: image {path.name} is not there" for path in used if not path.exists()]
        if str(root) in text:
            wrong.append(f"{name} names {root}, a folder of this machine; print paths relative to the clone")
        size = len(text.encode()) + sum(path.stat().st_size for path in used if path.exists())
        if size > PAGE_LIMIT:
            wrong.append(f"{name} has {size / 1e6:.1f} MB with its images, more than {PAGE_LIMIT / 1e6:g} MB")
    if wrong:
        raise ReportError("the report was not replaced:\n" + "\n".join(wrong))


def replace(output: Path, site: Path) -> None:
    """Put the new site in the place of the old one; the old one goes only when the new one lies beside it."""
    partial, old = site.with_name("report.partial"), site.with_name("report.old.partial")
    for path in (partial, old):
        shutil.rmtree(path, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(output, partial)
    if site.exists():
        os.replace(site, old)
    try:
        os.replace(partial, site)
    except OSError:
        if old.exists():
            os.replace(old, site)
        raise
    shutil.rmtree(old, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m decorlib.study.report.build", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="full", help="whose results; default: full")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with docs/ and results/; default: the clone")
    parser.add_argument("--force", action="store_true", help="build even where nothing changed")
    options = parser.parse_args(arguments)
    try:
        profile = request.profile(options.profile)
    except request.BadRequest as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    root = options.root.resolve()
    results = root / "results" if profile == "full" else root / "build" / profile
    try:
        with one_at_a_time(root):
            return 0 if build(root, results, root / "build" / "reproduce" / profile, options.force) else 1
    except OSError as error:
        print(f"report: {error}: free space there or make it writable, and call again", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
