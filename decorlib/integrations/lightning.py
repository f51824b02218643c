"""R in a Lightning Trainer: ``Trainer(callbacks=[DecorrelationCallback(DecorSGD(module, lr=1e-4))])``."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    raise ImportError("decorlib.integrations.lightning needs Lightning: pip install lightning") from error

from decorlib.optim import OptimizerOfR


class DecorrelationCallback(Callback):
    """Steps R after each batch in which Lightning stepped an optimizer, and logs the decorrelation losses.

    For automatic and manual optimization, gradient accumulation (with ``accumulate=True`` in the layers, so that R
    learns from all batches of a step) and 16-bit precision. ``configure_optimizers`` returns that of the weights alone,
    built over :func:`decorlib.bp_parameters`. In manual optimization the optimizer of R can also be returned beside it
    and stepped by hand; then there is nothing to do here.

    Args:
        optimizer: a :class:`decorlib.DecorSGD` or :class:`decorlib.DecorOptimizer` of the module; its state goes into
            Lightning's checkpoints.
    """

    def __init__(self, optimizer: OptimizerOfR):
        self.optimizer, self._steps = optimizer, 0

    def on_train_start(self, trainer, pl_module) -> None:
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self._steps:  # a batch whose gradients are only accumulated
            return
        self._steps = trainer.global_step
        self.optimizer.step()
        losses = {f"decor_loss/{name or 'model'}": loss for name, loss in self.optimizer.losses.items()}
        pl_module.log_dict({name: loss for name, loss in losses.items() if loss is not None})

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)
