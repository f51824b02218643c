#!/usr/bin/env bash
# lightning: with two optimizers in manual optimization, max_steps=10 trains on five batches.
#
# Packages (Python 3.11):
#   lightning==2.6.6 torch==2.13.0 numpy==2.4.6
# Expected:
#   max_steps=10 gives ten training batches, whether the parameters sit in one optimizer or are
#   split over two (say, one for a decorrelating part) that both step on each batch.
# Seen:
#   Each optimizer's step() raises global_step, so two optimizers reach max_steps after five
#   batches. Schedules and logging keyed on global_step run twice as fast as well.
# Output seen:
#   max_steps=10, one optimizer : batches 10, global_step 10
#   max_steps=10, two optimizers: batches 5, global_step 10
#   seen: with two optimizers max_steps=10 trains on only 5 batches
# Pointer:
#   Lightning-AI/pytorch-lightning issue 17958 (open); the docs of Trainer.global_step say 'This
#   includes multiple optimizers (if enabled)'.
# Exit: 0 behaves as stated, 1 the behaviour changed, 2 the packages would not install.
set -euo pipefail
export OMP_NUM_THREADS=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq lightning==2.6.6 torch==2.13.0 numpy==2.4.6 || exit 2
HOME="$tmp" "$tmp/venv/bin/python" - "$tmp" <<'EOF'
import logging, sys, warnings
warnings.filterwarnings("ignore")
import torch
from torch import nn
import lightning as L
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

class Net(L.LightningModule):
    def __init__(self, split):
        super().__init__()
        self.automatic_optimization = False
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 1)
        self.split, self.batches = split, 0

    def configure_optimizers(self):
        groups = [self.first, self.last] if self.split else [self]
        return [torch.optim.SGD(g.parameters(), lr=1e-3) for g in groups]

    def training_step(self, batch, index):
        self.batches += 1
        opts = self.optimizers()
        opts = opts if isinstance(opts, list) else [opts]
        loss = self.last(self.first(batch)).pow(2).mean()
        self.manual_backward(loss)
        for opt in opts:
            opt.step()
            opt.zero_grad()

def fit(split):
    net = Net(split)
    trainer = L.Trainer(max_steps=10, accelerator="cpu", logger=False, enable_progress_bar=False,
                        enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(net, torch.utils.data.DataLoader(torch.randn(64, 2), batch_size=4))
    return net.batches, trainer.global_step

one, two = fit(False), fit(True)
print("max_steps=10, one optimizer : batches %d, global_step %d" % one)
print("max_steps=10, two optimizers: batches %d, global_step %d" % two)
if one != (10, 10):
    sys.exit("changed: one optimizer no longer sees ten batches")
if two != (5, 10):
    sys.exit("changed: two optimizers no longer halve the batches")
print("seen: with two optimizers max_steps=10 trains on only 5 batches")
EOF
