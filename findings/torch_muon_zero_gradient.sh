#!/usr/bin/env bash
# torch: Muon takes full-size steps long after the gradient has become exactly zero.
#
# Packages (Python 3.11):
#   torch==2.13.0 numpy==2.4.6
# Expected:
#   With momentum 0.95 and no weight decay the steps fade out once the gradient is zero, as
#   those of SGD and Adam do.
# Seen:
#   Muon orthogonalises the momentum buffer whatever its size, so the step stays as large as on
#   a real gradient until the buffer has decayed to about eps: some 300 zero gradients here. A
#   layer whose gradient is masked to zero keeps moving; grad = None does stop it.
# Output seen:
#   SGD  step after 1, 100, 200 zero gradients / first step: 0.95000 0.00592 0.00004
#   Adam step after 1, 100, 200 zero gradients / first step: 0.68915 0.00307 0.00003
#   Muon step after 1, 100, 200 zero gradients / first step: 1.00024 1.00394 1.00103
#   seen: Muon still takes full-size steps after 200 zero gradients
# Pointer:
#   torch.optim.Muon in the PyTorch documentation gives the update as NS(momentum), with no
#   factor for the momentum's size; no public issue found.
# Exit: 0 behaves as stated, 1 the behaviour changed, 2 the packages would not install.
set -euo pipefail
export OMP_NUM_THREADS=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 || exit 2
HOME="$tmp" "$tmp/venv/bin/python" - "$tmp" <<'EOF'
import sys
import torch

def step_sizes(make, zeros):
    """Size of the step on one real gradient, then of the last of `zeros` zero-gradient steps."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(8, 8))
    opt, grad, sizes = make([p]), torch.randn(8, 8), []
    for i in range(zeros + 1):
        before = p.detach().clone()
        p.grad = grad.clone() if i == 0 else torch.zeros_like(grad)
        opt.step()
        sizes.append((p.detach() - before).norm().item())
    return sizes[-1] / sizes[0]

makers = {
    "SGD ": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.95),
    "Adam": lambda ps: torch.optim.Adam(ps, lr=0.1, betas=(0.95, 0.999)),
    "Muon": lambda ps: torch.optim.Muon(ps, lr=0.1, momentum=0.95, weight_decay=0.0),
}
rows = {k: [step_sizes(m, z) for z in (1, 100, 200)] for k, m in makers.items()}
for name, row in rows.items():
    print(name, "step after 1, 100, 200 zero gradients / first step:",
          " ".join(f"{r:.5f}" for r in row))
if max(rows["SGD "][1], rows["Adam"][1]) > 0.01:
    sys.exit("changed: SGD or Adam no longer fades out")
if any(abs(r - 1) > 0.05 for r in rows["Muon"]):
    sys.exit("changed: Muon no longer takes full steps on zero gradients")
print("seen: Muon still takes full-size steps after 200 zero gradients")
EOF
