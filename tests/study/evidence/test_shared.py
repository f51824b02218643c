"""What other notebooks' records say about a row, and that no row keeps silent about it."""

import pytest
import yaml

from decorlib.study.evidence import answers, shared
from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import EXTENDED, Record, load_records
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
