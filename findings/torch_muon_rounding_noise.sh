#!/usr/bin/env bash
# torch: most of Muon's step on a rank-one gradient is rounding noise, also with float64 weights.
#
# Packages (Python 3.11):
#   torch==2.13.0 numpy==2.4.6
# Expected:
#   The step is NS(momentum) as documented, as exact as the dtype of the weights. For inputs that
#   are orthogonal to all of a batch the layer's gradient is zero, so there nothing moves.
# Seen:
#   Muon casts the gradient to bfloat16 whatever its dtype, and five Newton-Schulz steps multiply
#   small singular values by up to 3.4445^5 = 485: the rounding of the cast comes out as steps of
#   the size of the real one. With a batch of one, 70% of the squared step lies where the gradient
#   is zero. No option sets the dtype; the same iteration in float64 puts nothing there.
# Output seen (nn.Linear(256, 256) in float64, share of the squared step off the gradient's span):
#   batch  1: Muon 0.727, its formula in float64 0.000
#   batch  4: Muon 0.315, its formula in float64 0.000
#   batch 16: Muon 0.113, its formula in float64 0.000
#   seen: Muon steps by rounding noise where a float64 gradient is zero
# Pointer:
#   The PyTorch documentation of torch.optim.Muon does not mention bfloat16. The review of
#   pytorch/pytorch pull request 160213 ('Introduce Muon optimizer to PyTorch') questions the forced
#   cast; no public issue found on what it does to gradients of low rank.
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

def documented(grad, coefficients=(3.4445, -4.775, 2.0315), steps=5):
    """The Newton-Schulz iteration of torch.optim.Muon with its default options, in grad's dtype."""
    a, b, c = coefficients
    x = grad / grad.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x

def off(step, grad, rank):
    """Share of the squared step outside of the column and row spaces of the gradient."""
    u, s, vh = torch.linalg.svd(grad)
    if s[rank:].max() > 1e-12 * s[0]:
        sys.exit("changed: the gradient does not have the rank of its batch")
    u, v = u[:, :rank], vh[:rank].T
    rest = step - u @ (u.T @ step @ v) @ v.T
    return (rest.norm() / step.norm()).square().item()

rows = {}
for batch in (1, 4, 16):
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 256, bias=False, dtype=torch.float64)
    x, y = torch.randn(2, batch, 256, dtype=torch.float64)
    (layer(x) - y).square().mean().backward()
    before = layer.weight.detach().clone()
    torch.optim.Muon(layer.parameters(), lr=1.0, weight_decay=0.0, momentum=0.0).step()
    step, grad = before - layer.weight.detach(), layer.weight.grad
    rows[batch] = off(step, grad, batch), off(documented(grad), grad, batch)
    print(f"batch {batch:2}: Muon {rows[batch][0]:.3f}, its formula in float64 {rows[batch][1]:.3f}")
if any(exact > 1e-6 for _, exact in rows.values()):
    sys.exit("changed: the formula itself leaves the gradient's spaces")
if rows[1][0] < 0.5 or rows[4][0] < 0.2 or rows[16][0] < 0.05:
    sys.exit("changed: Muon stays closer to the gradient's spaces")
print("seen: Muon steps by rounding noise where a float64 gradient is zero")
EOF
