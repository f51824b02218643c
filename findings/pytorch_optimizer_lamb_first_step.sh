#!/usr/bin/env bash
# pytorch-optimizer: LAMB's first step is ten times lr * |weight|, and lr=0.1 wipes the weight out.
#
# Packages (Python 3.11):
#   pytorch-optimizer==4.1.0 torch==2.13.0 numpy==2.4.6
# Expected:
#   LAMB's trust ratio sets the size of a step to lr * |weight| (no weight decay, norm under the
#   clamp of 10). The class says that its default does without bias correction.
# Seen:
#   The step is divided by 1 - beta1^t after the trust ratio has fixed its size: 10 times too
#   long at first, 2.4 times at the fifth step. At lr=0.1 a constant weight is exactly used up
#   by the first step. adam_debias=True gives lr * |weight| on every step.
# Output seen:
#   default          : 10.000 5.263 3.690 2.908 2.442
#   adam_debias=True : 1.000 1.000 1.000 1.000 1.000
#   lr=0.1, weight 2.0 everywhere: 0.000000 after one step
#   seen: the default's first step is 10 * lr * |weight|; at lr=0.1 it zeroes the weight
# Pointer:
#   docstring of pytorch_optimizer.Lamb: 'The default update follows version 3 of the paper
#   without bias correction'; no public issue found.
# Exit: 0 behaves as stated, 1 the behaviour changed, 2 the packages would not install.
set -euo pipefail
export OMP_NUM_THREADS=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq pytorch-optimizer==4.1.0 torch==2.13.0 numpy==2.4.6 || exit 2
HOME="$tmp" "$tmp/venv/bin/python" - "$tmp" <<'EOF'
import sys
import torch
from pytorch_optimizer import Lamb

def relative_steps(lr, **options):
    """Each step's size over (lr * size of the weight): LAMB's trust ratio makes it 1."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(6, 6))
    opt, grad, out = Lamb([p], lr=lr, **options), torch.randn(6, 6), []
    for _ in range(5):
        before = p.detach().clone()
        p.grad = grad.clone()
        opt.step()
        out.append(((p.detach() - before).norm() / before.norm() / lr).item())
    return out

default = relative_steps(1e-3)
debias = relative_steps(1e-3, adam_debias=True)
print("default          :", " ".join(f"{s:.3f}" for s in default))
print("adam_debias=True :", " ".join(f"{s:.3f}" for s in debias))
p = torch.nn.Parameter(torch.full((4, 4), 2.0))
p.grad = torch.ones(4, 4)
Lamb([p], lr=0.1).step()
print(f"lr=0.1, weight 2.0 everywhere: {p.mean().item():.6f} after one step")
if any(abs(s - 1) > 0.01 for s in debias):
    sys.exit("changed: the step with adam_debias=True is not lr * |weight|")
if abs(default[0] - 10) > 0.1 or not 2 < default[4] < 3:
    sys.exit("changed: the default's first step is not ten times lr * |weight|")
if p.abs().max() > 1e-3:
    sys.exit("changed: one step at lr=0.1 no longer wipes the weight out")
print("seen: the default's first step is 10 * lr * |weight|; at lr=0.1 it zeroes the weight")
EOF
