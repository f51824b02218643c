"""R in a transformers Trainer: ``Trainer(..., callbacks=[DecorrelationCallback(DecorSGD(model, lr=1e-4))])``."""

from __future__ import annotations

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("decorlib.integrations.transformers needs transformers: pip install transformers") from error

from decorlib.optim import OptimizerOfR


class DecorrelationCallback(TrainerCallback):
    """Steps R after each step of the Trainer's optimizer, and adds the decorrelation losses to its logs.

    With gradient accumulation give the layers ``accumulate=True``, so that R learns from all batches of a step.
    Clipping, which the Trainer does by default, never sees R: nothing is left in ``.grad``. The Trainer's own optimizer
    leaves R alone, since R asks for no gradient.

    .. note:: The losses are in ``trainer.state.log_history`` and in what is printed; a reporter that was registered
       before this callback has read the logs already. The state of the optimizer of R is not in the Trainer's
       checkpoints; R is, and plain gradient steps have no other state than their rate.

    Args:
        optimizer: a :class:`decorlib.DecorSGD` or :class:`decorlib.DecorOptimizer` of the model.
    """

    def __init__(self, optimizer: OptimizerOfR):
        self.optimizer = optimizer

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.optimizer.step()

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        losses = self.optimizer.losses.items()
        found = {f"decor_loss/{name or 'model'}": float(loss) for name, loss in losses if loss is not None}
        for entries in ({} if logs is None else logs, *state.log_history[-1:]):
            entries.update(found)
