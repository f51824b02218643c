#!/usr/bin/env bash
# pytorch-optimizer: a step of Kron on one matrix n x m holds n^2 m^2 numbers, unless opt_einsum happens to be there.
#
# Packages (Python 3.11):
#   pytorch-optimizer==4.1.0 torch==2.13.0 numpy==2.4.6 opt_einsum==3.4.0 (the last in the second half only)
# Expected:
#   PSGD-Kron exists because its two factors, n x n and m x m, are small: a step on a matrix 96 x 72 needs about a
#   megabyte beside the weights, with what `pip install pytorch-optimizer` installs.
# Seen:
#   Its products are one einsum over several factors. torch.einsum contracts these from left to right, the outer product
#   of the factors first, unless opt_einsum is installed, which neither torch nor pytorch-optimizer ask for: the step
#   takes 4 (n m)^2 bytes and more. For 784 x 256, the first layer of a small network for digits, that is 161 GB.
# Output seen:
#   MB that the steps add, 96 x 72: without opt_einsum 546, with it 0; 4 (n m)^2 bytes are 191 MB
#   seen: without opt_einsum the outer product of Kron's factors is held in memory
# Pointer:
#   pytorch_optimizer/optimizer/psgd.py, get_precondition_grad and get_a_and_conj_b: torch.einsum(expression, *qs, g).
# Exit: 0 behaves as stated, 1 the behaviour changed, 2 the packages would not install.
set -euo pipefail
export OMP_NUM_THREADS=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq pytorch-optimizer==4.1.0 torch==2.13.0 numpy==2.4.6 || exit 2
cat > "$tmp/step.py" <<'EOF'
import resource
import torch
from pytorch_optimizer import Kron

torch.set_num_threads(1)

def steps(n, m):
    weight = torch.nn.Parameter(torch.zeros(n, m))
    optimizer = Kron([weight], lr=1e-3)
    for _ in range(2):
        weight.grad = torch.randn(n, m)
        optimizer.step()

steps(8, 6)  # what is loaded at first use
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
steps(96, 72)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
EOF
without=$(HOME="$tmp" "$tmp/venv/bin/python" "$tmp/step.py")
"$tmp/venv/bin/pip" install -qq opt_einsum==3.4.0 || exit 2
with=$(HOME="$tmp" "$tmp/venv/bin/python" "$tmp/step.py")
echo "MB that the steps add, 96 x 72: without opt_einsum $without, with it $with; 4 (n m)^2 bytes are 191 MB"
if [ "$without" -lt 150 ] || [ "$with" -gt 40 ]; then
  echo "changed: the step no longer holds n^2 m^2 numbers, or opt_einsum no longer mends it"
  exit 1
fi
echo "seen: without opt_einsum the outer product of Kron's factors is held in memory"
