#!/usr/bin/env bash
# torch: FlopCounterMode counts in-place products, matrix-vector products and factorisations as 0.
#
# Packages (Python 3.11):
#   torch==2.13.0 numpy==2.4.6
# Expected:
#   addmm and addmm_ do the same arithmetic, so they count the same; a Cholesky or
#   eigendecomposition of an n x n matrix costs some multiple of n^3.
# Seen:
#   addmm and baddbmm count, addmm_ and baddbmm_ count 0; F.linear on one vector counts, a @ v
#   on the same numbers counts 0; cholesky, eigh, inv and solve count 0. No warning. An
#   optimizer that whitens or keeps running covariances in place looks free.
# Output seen:
#   counted addmm 524288; baddbmm 1048576; linear on one vector 8192
#   missed  addmm_ 0; baddbmm_ 0; mv 0; cholesky 0; eigh 0; inv 0; solve 0
#   seen: in-place products, matrix-vector products and factorisations count 0 flops
# Pointer:
#   the counted operators are those registered with register_flop_formula in
#   torch/utils/flop_counter.py; no public issue found.
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
from torch.utils.flop_counter import FlopCounterMode

n = 64
a, v, b = torch.randn(n, n), torch.randn(n), torch.randn(2, n, n)
spd = a @ a.T + n * torch.eye(n)

def flops(op):
    with FlopCounterMode(display=False) as counter:
        op()
    return counter.get_total_flops()

counted = {
    "addmm": flops(lambda: torch.addmm(a, a, a)),
    "baddbmm": flops(lambda: torch.baddbmm(b, b, b)),
    "linear on one vector": flops(lambda: torch.nn.functional.linear(v, a)),
}
missed = {
    "addmm_": flops(lambda: a.clone().addmm_(a, a)),
    "baddbmm_": flops(lambda: b.clone().baddbmm_(b, b)),
    "mv": flops(lambda: a @ v),
    "cholesky": flops(lambda: torch.linalg.cholesky(spd)),
    "eigh": flops(lambda: torch.linalg.eigh(spd)),
    "inv": flops(lambda: torch.linalg.inv(spd)),
    "solve": flops(lambda: torch.linalg.solve(spd, a)),
}
for title, row in ("counted", counted), ("missed ", missed):
    print(title, "; ".join(f"{op} {n}" for op, n in row.items()))
want = {"addmm": 2 * n**3, "baddbmm": 4 * n**3, "linear on one vector": 2 * n**2}
if counted != want:
    sys.exit("changed: the out-of-place counts differ")
if any(missed.values()):
    sys.exit("changed: some of these now count")
print("seen: in-place products, matrix-vector products and factorisations count 0 flops")
EOF
