"""The history of the answers: read from a repository's own commits; the page knows the present answers."""

import json
import subprocess
from pathlib import Path

import pytest

from decorlib.study.evidence import changes
from decorlib.study.evidence.records import Record

ROOT = Path(__file__).resolve().parents[3]


def verdict(**values) -> dict:
    said = {"hypothesis": "gain", "claim": "it helps", "criterion": "above 0.01", "outcome": "supported"}
    return said | {"estimate": 0.02, "low": 0.015, "high": 0.025, "n": 5} | values


@pytest.fixture
def repository(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    def commit(subject, *verdicts, **parameters):
        path = tmp_path / changes.FOLDER / "07.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"verdicts": verdicts, "parameters": parameters}))
        git("add", "-A")
        git("commit", "-q", "-m", subject)

    git("init", "-q")
    (tmp_path / "docs").mkdir()
    (tmp_path / changes.PAGE).write_text("# History\n\n<!-- changes: here -->\nold\n<!-- /changes -->\nafter\n")
    commit("first", verdict(), epochs=5)
    commit("same again, another estimate", verdict(estimate=0.021), epochs=5)
    commit("moved the goal", verdict(criterion="above 0.001", outcome="inconclusive"), epochs=5)
    commit(
        "more epochs", verdict(criterion="above 0.001", outcome="inconclusive"), verdict(hypothesis="time"), epochs=9
    )
    commit("dropped", verdict(hypothesis="time"), epochs=9)
    return tmp_path


def test_every_change_has_a_row_and_a_repetition_has_none(repository):
    history = changes.versions("07", repository)
    assert next(version.subject for version in history) == "first"
    said = [(row[1], row[4], row[5]) for row in changes.rows("07", history)]
    unsure = "inconclusive, 0.02 [0.015, 0.025], n = 5"
    assert said == [
        ("gain", "first asked", "supported, 0.02 [0.015, 0.025], n = 5"),
        ("gain", "criterion: “above 0.01” → “above 0.001”; outcome: supported → **inconclusive**", unsure),
        ("gain", "epochs: 5 → 9", unsure),
        ("time", "first asked", "supported, 0.02 [0.015, 0.025], n = 5"),
        ("gain", "no longer asked", ""),
    ]


def test_the_page_is_written_between_its_markers_once(repository):
    assert changes.write(repository)
    text = (repository / changes.PAGE).read_text(encoding="utf-8")
    assert text.startswith("# History")
    assert text.endswith("after\n")
    assert "old" not in text.split("commit |")[0]
    assert text.count("| 07 |") == 5
    assert not changes.write(repository)


def test_a_clone_without_its_history_is_refused(repository, tmp_path_factory):
    shallow = tmp_path_factory.mktemp("clone") / "shallow"
    subprocess.run(
        ["git", "clone", "-q", "--depth", "1", repository.as_uri(), shallow], check=True, capture_output=True
    )
    with pytest.raises(RuntimeError, match="no whole history: clone it"):
        changes.write(shallow)


def test_the_committed_page_ends_with_the_committed_answers():
    text = (ROOT / changes.PAGE).read_text(encoding="utf-8")
    for path in sorted((ROOT / changes.FOLDER).glob("[0-9][0-9].json")):
        for kept in Record.load(path).verdicts:
            mine = [line for line in text.splitlines() if line.startswith(f"| {path.stem} | {kept['hypothesis']} |")]
            assert mine, f"{path.stem}: {kept['hypothesis']}"
            assert f"| {kept['outcome']}, " in mine[-1]
