"""The cells of the 2024 notebook, verbatim but for two import lines and the data root, print what it printed.

``notebook_2024_cells.txt`` holds the cells as they are, ``decorlib/data/notebook_2024_tables.json`` the printed tables.
"""

import contextlib
import io
import json
import re
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from decorlib.data.datasets import mnist_root
from decorlib.layers.step import PreparedStep
from decorlib.study.experiments import notebook_2024
from decorlib.training import SilentNoOp, decor_train
from decorlib.training.history import Epoch, History

PRINTED = json.loads(files("decorlib").joinpath("data/notebook_2024_tables.json").read_text())["runs"]
CHANGED = {  # everything that differs from the document
    "from decorrelation.decorrelation import": "from decorlib import",
    "from decorrelation.train import decor_train": "from decorlib import decor_train",
    "%load_ext autoreload\n%autoreload 2\n": "",  # orders to IPython
    "root='~/Data'": "root=DATA_ROOT",
}
LINE = re.compile(r"epoch (\d+) *\ttime:\d+\.\d{3} s\tbp loss: (\d+\.\d{6})\tdecorrelation loss: (\d+\.\d{6})")
RELATIVE = 1e-5


def cells():
    """{number: code} of the document's cells, as changed by CHANGED."""
    text = Path(__file__).with_name("notebook_2024_cells.txt").read_text()
    for old, new in CHANGED.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    _, *parts = re.split(r"^In \[(\d)\]:\n", text, flags=re.MULTILINE)
    return {int(number): code for number, code in zip(parts[::2], parts[1::2], strict=True)}


def execute(number, namespace):
    """Run one cell and return the table that it printed: [(epoch, bp loss, decorrelation loss)]."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(cells()[number], f"<In [{number}]>", "exec"), namespace)
    lines = printed.getvalue().splitlines()
    rows = [LINE.fullmatch(line) for line in lines]
    assert all(rows), f"a line is not in the form of 2024: {lines}"
    return [(int(row[1]), float(row[2]), float(row[3])) for row in rows]


def same(rows, table):
    """Every number that the document holds, to 1e-5."""
    assert len(rows) >= len(table)
    for (epoch, bp, decor), expected in zip(rows, table, strict=False):
        assert epoch == expected["epoch"]
        assert bp == pytest.approx(expected["bp_loss"], rel=RELATIVE)
        if expected.get("decorrelation_loss") is not None:
            assert decor == pytest.approx(expected["decorrelation_loss"], rel=RELATIVE)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The kernel after cells 1 to 4: {"namespace", "tables", "random state"}; other tests' randomness is restored."""
    numpy_state = np.random.get_state()  # noqa: NPY002 (the 2024 notebook draws from it)
    with torch.random.fork_rng():
        namespace = {"DATA_ROOT": mnist_root(tmp_path_factory.mktemp("data"))}
        tables = {number: execute(number, namespace) for number in (1, 2, 3, 4)}
        yield {"namespace": namespace, "tables": tables, "random": torch.get_rng_state()}
    np.random.set_state(numpy_state)  # noqa: NPY002


def test_run_1_decorrelation_only(notebook):
    assert notebook["tables"][1] == notebook["tables"][2] == []
    assert len(notebook["tables"][3]) == len(PRINTED["run1_decorrelation_only"]) == 11
    same(notebook["tables"][3], PRINTED["run1_decorrelation_only"])


def test_run_2_single_layer(notebook):
    assert len(notebook["tables"][4]) == len(PRINTED["run2_single_layer"]) == 11
    same(notebook["tables"][4], PRINTED["run2_single_layer"])


def without_gradient(monkeypatch):
    """What the edited and reloaded code did: update() reports its loss and sets no gradient."""
    true = PreparedStep.commit_gradient

    def commit(self):
        loss = true(self)
        self.layer.weight.grad = None
        return loss

    monkeypatch.setattr(PreparedStep, "commit_gradient", commit)


def test_run_3_is_refused_at_the_first_step(notebook, monkeypatch):
    """Today the failed run would not get past its first step."""
    without_gradient(monkeypatch)
    taken, true = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: taken.append(true(self)))
    with pytest.raises(SilentNoOp, match=r"the first step: .* update\(\) left no gradient"):
        execute(6, dict(notebook["namespace"]))
    assert len(taken) == 1


def test_a_history_stands_beside_what_was_printed():
    """A row per printed epoch; run 3's last decorrelation loss was cut off, so it has no difference."""
    history = History([Epoch(e, 0.0, batches=15, loss=1.0, decor_losses={"": 2.0}) for e in range(21)])
    table = notebook_2024.beside_printed(history, "run3_two_layer")
    assert len(table) == len(PRINTED["run3_two_layer"]) == 14
    first, last = PRINTED["run3_two_layer"][0], table.iloc[-1]
    assert table.loc[0, "decorrelation loss, ours"] == 30.0  # 2024 sums over 15 batches
    asked = abs(30.0 - first["decorrelation_loss"]) / first["decorrelation_loss"]
    assert table.loc[0, "decorrelation loss, difference"] == pytest.approx(asked)
    assert np.isnan(last["decorrelation loss, printed"])
    assert np.isnan(last["decorrelation loss, difference"])
    assert np.isfinite(last["task loss, difference"])


@pytest.mark.slow
def test_run_3_is_the_cells_second_execution_with_an_update_that_sets_no_gradient(notebook, monkeypatch):
    """The prompts jump from 4 to 6: the cell ran before, and learned; then the library was edited under it."""
    torch.set_rng_state(notebook["random"])
    namespace = dict(notebook["namespace"])
    first = execute(6, namespace)
    without_gradient(monkeypatch)
    execute_again = {**namespace, "decor_train": partial(decor_train, allow_no_op=True)}
    code_imports_nothing = "import" not in cells()[6]
    assert code_imports_nothing, "the cell would undo allow_no_op"
    second = execute(6, execute_again)
    table = PRINTED["run3_two_layer"]
    same(second, table)
    assert table[-1]["epoch"] == 13
    assert int(second[13][2]) == 112, "the document is cut off after '112'"
    assert [row[0] for row in second] == list(range(21)), "the run goes on where the document ends"
    assert second[20][2] > 0.9 * second[0][2], "nothing was decorrelated in the second execution"
    assert first[20][2] < 0.5 * first[0][2], "the first execution decorrelated: the rule was not at fault"
