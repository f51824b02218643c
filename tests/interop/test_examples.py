"""The examples of docs/trainers.md, as they stand there: they train, every R moves, and what is fused is the same."""

import re
from pathlib import Path

import pytest
import torch

from decorlib import decor_modules

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "trainers.md").read_text(encoding="utf-8")
SECTIONS = [part.partition("\n") for part in re.split(r"^## ", PAGE, flags=re.M)[1:]]
BLOCKS = [(title, re.search(r"```python\n(.*?)```", rest, re.S)[1]) for title, _, rest in SECTIONS]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def run(block: str, needs: str, folder: Path, monkeypatch) -> dict:
    pytest.importorskip(needs)
    monkeypatch.chdir(folder)
    namespace: dict = {}
    exec(compile(block, "docs/trainers.md", "exec"), namespace)
    return namespace


def moved(model) -> list[str]:
    return [name for name, layer in decor_modules(model) if not torch.equal(layer.weight, torch.eye(len(layer.weight)))]


def test_the_page_has_one_example_of_each():
    assert [title for title, _ in BLOCKS] == ["Lightning", "The Trainer of transformers"]


def test_lightning(tmp_path, monkeypatch):
    found = run(BLOCKS[0][1], "lightning", tmp_path, monkeypatch)
    model, x = found["model"], found["x"]
    assert moved(model) == [name for name, _ in decor_modules(model)] != []
    assert {"decor_loss/network.0.decorrelation", "loss"} <= found["trainer"].logged_metrics.keys()
    torch.testing.assert_close(found["plain"](x), model.network(x), rtol=1e-4, atol=1e-4)


def test_trainer(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    found = run(BLOCKS[1][1], "transformers", tmp_path, monkeypatch)
    model, tokens = found["model"], found["tokens"][:4]
    assert moved(model) == [name for name, _ in decor_modules(model)] != []
    logged = [row for row in found["trainer"].state.log_history if any(key.startswith("decor_loss/") for key in row)]
    assert len(logged) >= 8
    torch.testing.assert_close(found["plain"](tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)
