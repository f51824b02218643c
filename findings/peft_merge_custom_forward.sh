#!/usr/bin/env bash
# peft: merging LoRA into a layer whose input is rescaled by its forward or a pre-hook changes the model.
#
# Packages (Python 3.11):
#   peft==0.21.2 transformers==5.24.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
# Expected:
#   merge_and_unload(safe_merge=True) gives a model with the same outputs, or refuses the layer.
# Seen:
#   The adapter branch sees the layer's raw input, the merged weight sees the rescaled one. With
#   a subclass of nn.Linear that doubles its input, or with an equivalent forward pre-hook, the
#   outputs move by more than half of their size on merging. No warning; the plain layer merges
#   exactly.
# Output seen:
#   nn.Linear: output moved by 0.000 (relative) on merging, warnings 0
#   subclass: output moved by 0.694 (relative) on merging, warnings 0
#   pre-hook: output moved by 0.694 (relative) on merging, warnings 0
#   seen: the safe merge silently changes the model where the layer scales its input
# Pointer:
#   no public issue found for this case.
# Exit: 0 behaves as stated, 1 the behaviour changed, 2 the packages would not install.
set -euo pipefail
export OMP_NUM_THREADS=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq peft==0.21.2 transformers==5.24.0 accelerate==1.15.0 torch==2.13.0 \
    numpy==2.4.6 || exit 2
HOME="$tmp" "$tmp/venv/bin/python" - "$tmp" <<'EOF'
import sys, warnings
import torch
from torch import nn
from peft import LoraConfig, get_peft_model

class Doubled(nn.Linear):
    """A Linear whose forward doubles its input."""
    def forward(self, x):
        return super().forward(2 * x)

def double_input(module, args):
    return (2 * args[0],)

def merge_gap(kind, hook=None):
    torch.manual_seed(0)
    layer = kind(8, 4)
    if hook:
        layer.register_forward_pre_hook(hook)
    net = nn.Sequential(layer)
    lora = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(net, lora).eval()
    x = torch.randn(5, 8)
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        before = model(x)
        after = model.merge_and_unload(safe_merge=True)(x)
    return ((after - before).norm() / before.norm()).item(), len(said)

gaps = {"nn.Linear": merge_gap(nn.Linear), "subclass": merge_gap(Doubled),
        "pre-hook": merge_gap(nn.Linear, double_input)}
for name, (gap, said) in gaps.items():
    print(f"{name}: output moved by {gap:.3f} (relative) on merging, warnings {said}")
if gaps["nn.Linear"][0] > 1e-5:
    sys.exit("changed: merging a plain Linear moves the output")
if min(gaps["subclass"][0], gaps["pre-hook"][0]) < 0.1:
    sys.exit("changed: merging no longer moves the output of a custom layer")
if gaps["subclass"][1] or gaps["pre-hook"][1]:
    sys.exit("changed: peft now warns")
print("seen: the safe merge silently changes the model where the layer scales its input")
EOF
