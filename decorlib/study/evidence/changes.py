"""What became of each answer: changes of claims, criteria, parameters and outcomes, from the repository's history.

Run as ``python -m decorlib.study.evidence.changes``: it reads every committed version of every record and writes the
table of ``docs/history.md``. A study that changes its question after it has seen an answer owes its readers the list.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from decorlib._io.files import written_atomically
from decorlib.study.evidence.markers import between
from decorlib.study.evidence.provenance import ROOT, NoGit, git

PAGE = Path("docs") / "history.md"
FOLDER = "results/records"


@dataclass(frozen=True)
class Version:
    """A record as one commit left it."""

    commit: str
    date: str
    subject: str
    content: dict

    def verdict(self, hypothesis: str) -> dict | None:
        """Its verdict on a hypothesis."""
        return next((v for v in self.content.get("verdicts", []) if v["hypothesis"] == hypothesis), None)


def versions(number: str, root: Path = ROOT, revision: str = "HEAD") -> list[Version]:
    """Every committed version of a notebook's record, the oldest first; empty where it was never committed.

    Raises:
        NoGit: there is no history to be read.
    """
    name = f"{FOLDER}/{number}.json"
    log = git("log", "--reverse", "--format=%h%x09%as%x09%s", revision, "--", name, root=root)
    found = []
    for line in log.splitlines():
        commit, date, subject = line.split("\t", 2)
        try:
            text = git("show", f"{commit}:{name}", root=root)
        except NoGit:  # that commit removed it
            continue
        found.append(Version(commit, date, subject, json.loads(text)))
    return found


def differences(before: Version | None, after: Version, hypothesis: str) -> list[str]:
    """What a new version says otherwise about a hypothesis, one phrase each; the estimate alone is no change."""
    new, old = after.verdict(hypothesis), None if before is None else before.verdict(hypothesis)
    if new is None:
        return [] if old is None else ["no longer asked"]
    if old is None:
        return ["first asked"]
    said = [f"{name}: “{old[name]}” → “{new[name]}”" for name in ("claim", "criterion") if old[name] != new[name]]
    if old["outcome"] != new["outcome"]:
        said.append(f"outcome: {old['outcome']} → **{new['outcome']}**")
    a, b = before.content["parameters"], after.content["parameters"]
    changed = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    said += [f"{key}: {a.get(key, 'not there')} → {b.get(key, 'no longer there')}" for key in changed]
    return said


def rows(number: str, history: list[Version]) -> list[list[str]]:
    """One row for each version and hypothesis that says something else than the version before."""
    found, before = [], None
    for version in history:
        asked = [v["hypothesis"] for source in (before, version) if source for v in source.content["verdicts"]]
        for hypothesis in dict.fromkeys(asked):
            if said := differences(before, version, hypothesis):
                verdict = version.verdict(hypothesis)
                answer = "" if verdict is None else f"{verdict['outcome']}, {_numbers(verdict)}"
                found.append([number, hypothesis, version.date, f"`{version.commit}`", "; ".join(said), answer])
        before = version
    return found


def _numbers(verdict: dict) -> str:
    told = math.exp if verdict.get("ratio") else float
    estimate, low, high = (told(verdict[name]) for name in ("estimate", "low", "high"))
    return f"{estimate:.3g} [{low:.3g}, {high:.3g}], n = {verdict['n']}"


def table(root: Path = ROOT, revision: str = "HEAD") -> str:
    """All rows as a Markdown table, in the order of the notebooks."""
    names = ["notebook", "hypothesis", "date", "commit", "what changed", "answer from then on"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for path in sorted((root / FOLDER).glob("[0-9][0-9].json")):
        for row in rows(path.stem, versions(path.stem, root, revision)):
            lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines) + "\n"


def write(root: Path = ROOT) -> bool:
    """Put the table into the page; True where that changed it.

    Raises:
        RuntimeError: there is no history to read (no git, or a clone that holds only the last commit).
        ValueError: the page has no markers to write between.
    """
    try:
        reason = "" if git("rev-parse", "--is-shallow-repository", root=root) == "false" else "only its end is here"
    except NoGit as error:
        reason = str(error)
    if reason:
        raise RuntimeError(f"{root} has no whole history: clone it with git and without --depth ({reason})")
    path = root / PAGE
    old = path.read_text(encoding="utf-8")
    new = between(old, "changes", f"\n{table(root)}\n", where=str(PAGE))
    if new == old:
        return False
    with written_atomically(path) as file:
        file.write(new.encode())
    return True


def main() -> int:
    """Entry point."""
    try:
        print(f"{PAGE} {'written' if write() else 'is up to date'}")
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
