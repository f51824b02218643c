"""What other notebooks' records say about a row, and that no row keeps silent about it."""

import pandas as pd
import pytest
import yaml

from decorlib.study.evidence import answers, shared
from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import EXTENDED, Record, RecordDamaged, load_records
from decorlib.study.evidence.stats import paired


@pytest.fixture(scope="module")
def records():
    return load_records()


@pytest.fixture(scope="module")
def drawn(records):
    return shared.read(records)


def test_a_row_that_another_comparison_contradicts_says_so(records, drawn):
    """Every comparison is drawn; where it says something else than its row, README has its numbers."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = dict(answers.contradictions(records))
    outcomes = {answer.verdict.hypothesis: answer.outcome for _, answer in answers.answered(records)}
    for one in drawn:
        if one.outcome != outcomes[one.hypothesis]:
            assert f"{one.what} (" in said[one.hypothesis]
            assert one.numbers in said[one.hypothesis]
            assert one.numbers in text
    for row in answers.rows(records):
        assert (answers.OTHERWISE in row["outcome"]) == (row["hypothesis"] in said)
    assert said, "nothing disagrees with anything: is the registry read?"


def test_every_entry_of_the_registry_is_found_in_some_record(records):
    """An arm or a row that was renamed would silently stop contradicting."""
    registry = yaml.safe_load((ROOT / shared.REGISTRY).read_text(encoding="utf-8"))
    longer = {path.stem: Record.load(path) for path in (ROOT / EXTENDED / "records").glob("[0-9][0-9].json")}
    elsewhere = {path.stem: Record.load(path) for path in (ROOT / shared.ELSEWHERE).glob("*/[0-9][0-9].json")}
    hypotheses = {answer.verdict.hypothesis for _, answer in answers.answered(records)}
    assert set(registry) <= hypotheses
    for entries in registry.values():
        for entry in entries:
            among = [source[entry["record"]] for source in (records, longer, elsewhere) if entry["record"] in source]
            if entry.get("study") == "longer" and entry["record"] not in longer:
                assert (entry["record"], entry["what"]) in shared.waiting()
                continue
            assert any(shared.find(record, entry) for record in among), entry


def test_endings_are_those_of_the_rows_of_the_protocol(records):
    """What the stored endings give for an arm minus a control is what the record's own table of differences says."""
    table = records["07"].frame("protocol")
    assert len(table)
    for row in table.dropna(subset=["estimate"]).to_dict("records"):
        where = row["comparison"].split(": minus ")[0]
        ended = shared.by_arm(records["07"], where)
        pairs = [p for p in zip(ended[row["arm"]], ended[row["control"]], strict=True) if None not in p]
        assert paired(*zip(*pairs, strict=True)).estimate == pytest.approx(row["estimate"]), row["comparison"]


def test_what_hangs_on_the_processor_is_told_for_each(records, drawn):
    """The cost of a step: refuted on one, supported on another; neither stands alone."""
    (other,) = [one for one in drawn if one.hypothesis == "cost of a step"]
    mine = records["08"].made_by["machine"]["cpu"]
    theirs = Record.load(ROOT / shared.ELSEWHERE / "intel-xeon" / "08.json").made_by
    assert theirs["machine"]["cpu"] != mine
    assert other.where == f"on {theirs['machine']['cpu']} at commit {theirs['commit'][:7]}"


def small_record(**row):
    """A record with one comparison."""
    record = Record("01", question="Does it help?")
    told = {"cell": "1,000 digits", "estimate": 0.01, "low": 0.005, "high": 0.015, "n": 6, "p": 0.01} | row
    record.table("at every scale", pd.DataFrame([told]).set_index("cell"), tolerance=0.001)
    return record


ENTRY = {"record": "01", "table": "at every scale", "row": "1,000 digits", "what": "a minus b", "margin": 0.002}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with a registry of one entry, and the record of a longer study where one is given."""

    def make(longer=None):
        (tmp_path / "docs").mkdir()
        (tmp_path / shared.REGISTRY).write_text(yaml.safe_dump({"zero pixels": [ENTRY]}))
        folder = tmp_path / EXTENDED / "records"
        folder.mkdir(parents=True)
        if longer is not None:
            monkeypatch.setenv("DECORLIB_RESULTS", str(tmp_path / EXTENDED))
            longer.write()
        return tmp_path

    return make


@pytest.mark.parametrize(("estimate", "times"), [(0.01, 1), (0.012, 2)])
def test_what_both_studies_found_alike_is_told_once(clone, estimate, times):
    """The longer study runs the cells of the full one too; another finding of it is told beside it."""
    found = shared.read({"01": small_record()}, clone(small_record(estimate=estimate)))
    assert len(found) == times
    assert [bool(one.where) for one in found] == [False, True][:times]


def test_a_comparison_that_lacks_pairs_is_undecided(clone):
    """Two of eight runs diverged: what the other six say decides nothing."""
    root = clone()
    (whole,) = shared.read({"01": small_record(seeds=6)}, root)
    (some,) = shared.read({"01": small_record(seeds=8)}, root)
    assert (whole.outcome, some.outcome) == ("supported", "undecided")


def test_a_comparison_whose_runs_diverged_has_no_numbers(clone):
    assert shared.find(small_record(), ENTRY) is not None
    lost = small_record(estimate=float("nan"), low=float("nan"), high=float("nan"), n=0)
    assert shared.find(lost, ENTRY) is None
    assert shared.read({"01": lost}, clone()) == []


def test_what_only_the_longer_study_makes_is_said_to_wait(clone):
    entry = ENTRY | {"study": "longer", "what": "a minus b, 60,000 digits"}
    root = clone()
    (root / shared.REGISTRY).write_text(yaml.safe_dump({"zero pixels": [ENTRY, entry]}))
    assert shared.waiting(root) == [(ENTRY["record"], "a minus b, 60,000 digits")]
    assert ": 1 of the comparisons that bear on these rows, those of notebook 01." in answers.below(
        {"01": small_record()}, root
    )
    (root / EXTENDED / "records" / "01.json").write_text("{}")
    with pytest.raises(RecordDamaged):
        shared.waiting(root)
