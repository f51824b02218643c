"""transformers' Trainer with accumulation and clipping: the same R as a loop written by hand."""

import pytest
import torch
from torch import nn

from decorlib import DecorSGD, bp_parameters, decor_modules, decor_step, decorrelate

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import Trainer, TrainingArguments

from decorlib.integrations.transformers import DecorrelationCallback

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
STEPS, EVERY, SIZE = 20, 4, 8


class Classifier(nn.Module):
    """What a Trainer asks of a model: a loss and outputs, from named inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x, labels):
        outputs = self.net(x)
        return {"loss": nn.functional.cross_entropy(outputs, labels), "logits": outputs}


def data():
    torch.manual_seed(1)
    x, t = torch.randn(STEPS * EVERY * SIZE, 6) @ torch.randn(6, 6), torch.randint(3, (STEPS * EVERY * SIZE,))
    return [{"x": a, "labels": b} for a, b in zip(x, t, strict=True)]


def model():
    return decorrelate(Classifier(), "kappa", accumulate=True)


@pytest.mark.parametrize("clip", [1.0, 0.1])
def test_the_callback_steps_R_as_a_loop_by_hand_does_and_logs_its_losses(clip, tmp_path):
    trained, plain, rows = model(), model(), data()
    arguments = TrainingArguments(
        tmp_path,
        max_steps=STEPS,
        per_device_train_batch_size=SIZE,
        gradient_accumulation_steps=EVERY,
        max_grad_norm=clip,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        optim="sgd",
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        train_sampling_strategy="sequential",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        trained, arguments, train_dataset=rows, callbacks=[DecorrelationCallback(DecorSGD(trained, lr=0.02))]
    )
    trainer.train()
    weights, norms = torch.optim.SGD(bp_parameters(plain), lr=0.05), []
    for step in range(STEPS):
        for part in range(EVERY):
            start = (step * EVERY + part) * SIZE
            batch = rows[start : start + SIZE]
            inputs = {name: torch.stack([row[name] for row in batch]) for name in ("x", "labels")}
            (plain(**inputs)["loss"] / EVERY).backward()
        norms.append(float(nn.utils.clip_grad_norm_(bp_parameters(plain), clip)))
        weights.step()
        weights.zero_grad()
        decor_step(plain, 0.02)
    R = [{name: layer.weight.detach() for name, layer in decor_modules(one)} for one in (trained, plain)]
    assert all(not torch.equal(one, torch.eye(len(one))) for one in R[0].values())
    torch.testing.assert_close(*R)
    logged = [row for row in trainer.state.log_history if "grad_norm" in row]
    assert [row["grad_norm"] for row in logged] == pytest.approx(norms, rel=1e-4)
    assert all(row["decor_loss/net.0.decorrelation"] > 0 for row in logged)
