#!/usr/bin/env bash
# torch.nn.TransformerEncoderLayer: in inference it does not call the module that stands at linear1.
#
# Packages (Python 3.11):
#   torch==2.13.0 numpy==2.4.6
# Expected:
#   A subclass of nn.Linear with a forward of its own, put in the place of linear1, is called in
#   training and in evaluation, and both modes (no dropout) give the same output.
# Seen:
#   In eval() without gradients the layer multiplies by linear1.weight itself and the subclass is
#   passed over: the output is that of a plain nn.Linear with these weights. With a forward
#   pre-hook anywhere inside, even one that is never reached, the subclass is called again.
# Output seen:
#   calls: train 1, eval with gradients 1, eval without 0, the same with a hook inside 1
#   eval without gradients equals a plain nn.Linear: True; equals its own training forward: False
#   seen: the fast path of inference passes the forward of a replaced linear1 over
# Pointer:
#   torch/nn/modules/transformer.py, TransformerEncoderLayer.forward: why_not_sparsity_fast_path
#   asks for hooks and for gradients, not for the class of linear1.
# Exit: 0 behaves as stated, 1 the behaviour changed, 2 the packages would not install.
set -euo pipefail
export OMP_NUM_THREADS=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 || exit 2
HOME="$tmp" "$tmp/venv/bin/python" - <<'EOF'
import sys

import torch
from torch import nn


class Halved(nn.Linear):
    calls = 0

    def forward(self, x):
        Halved.calls += 1
        return super().forward(x) / 2


def called(layer, x):
    before = Halved.calls
    return layer(x), Halved.calls - before


torch.manual_seed(0)
x = torch.randn(3, 5, 8)
layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
plain = layer.linear1
layer.linear1 = Halved(8, 12)
layer.linear1.load_state_dict(plain.state_dict())

trained, train = called(layer.train(), x)
_, eval_with = called(layer.eval(), x)
with torch.no_grad():
    skipped, eval_without = called(layer, x)
    handle = layer.linear1.register_forward_pre_hook(lambda module, args: None)
    hooked, with_hook = called(layer, x)
    handle.remove()
    layer.linear1 = plain
    of_plain = layer(x)
print(f"calls: train {train}, eval with gradients {eval_with}, eval without {eval_without}, "
      f"the same with a hook inside {with_hook}")
same, right = torch.allclose(skipped, of_plain), torch.allclose(skipped, trained, atol=1e-5)
print(f"eval without gradients equals a plain nn.Linear: {same}; equals its own training forward: {right}")
if (train, eval_with, eval_without, with_hook) != (1, 1, 0, 1):
    sys.exit("changed: calls of the replaced linear1")
if not same or right or not torch.allclose(hooked, trained, atol=1e-5):
    sys.exit("changed: what the encoder layer computes in inference")
print("seen: the fast path of inference passes the forward of a replaced linear1 over")
EOF
