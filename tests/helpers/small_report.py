"""Results of one small notebook, as `make reproduce` leaves them, for the tests of the report."""

from pathlib import Path

import pandas as pd
from nbformat import v4

from decorlib.study.evidence.records import Record
from decorlib.study.report import freshness, notebooks

ROOT = Path(__file__).resolve().parents[2]


def figure(png, alt="A line."):
    metadata = {"image/png": {"alt": alt, "width": 672}} if alt else {}
    return v4.new_output("display_data", data={"image/png": png, "text/plain": "f"}, metadata=metadata)


def verdict(outcome="supported"):
    return {
        **dict.fromkeys(("hypothesis", "claim", "criterion", "evidence", "remedy"), "it helps | a lot"),
        **{"estimate": 0.5, "low": 0.25, "high": 0.75, "n": 5, "unit": "epochs", "p_value": 0.01},
        **{"outcome": outcome, "explains_failed_run": "no", "margin": 0.1, "better": "higher", "tolerance": None},
        **dict.fromkeys(("scale", "schedule", "control"), "small"),
    }


def put_results(
    root, monkeypatch, png, number="07", formula="$\\frac12 \\bm{R}$ and\n\n$$ a &= \\hat R_{ij} \\\\ b &= 2 $$"
):
    """Results of one notebook, as `reproduce` leaves them."""
    results = root / "results"
    monkeypatch.setenv("DECORLIB_RESULTS", str(results))
    record = Record(number, "Why?", {"seeds": 5})
    record.value("x", 1.0, tolerance=0.1)
    record.table("answer", pd.DataFrame({"sentence": ["It *needs* 2 epochs.", "A gain: <yes>."]}))
    record.verdict(verdict())
    record.write()
    links = (
        "[next](99_nowhere.ipynb) [rules](../decorlib/rules/rules.py) [licence](../LICENSE) [web](https://example.org)"
    )
    cells = [
        v4.new_markdown_cell(f"# {number} · Why?\n\n{links}", id="a"),
        v4.new_code_cell("show()", id="b", outputs=[figure(png), figure(png, "Another line.")], execution_count=1),
        v4.new_markdown_cell(formula, id="c"),
    ]
    notebook = notebooks.normalise(v4.new_notebook(cells=cells))
    sums = {f"records/{name}": value for name, value in freshness.digests(results / "records").items()}
    notebook.metadata["decorlib"] = {"outputs": sums}
    path = results / "notebooks" / f"{number}_why.ipynb"
    path.parent.mkdir(exist_ok=True)
    notebooks.write(notebook, path)
    return results
