#!/usr/bin/env bash
# curvlinops: KFAC treats any subclass of nn.Linear as nn.Linear, whatever its forward does.
#
# Packages (Python 3.11):
#   curvlinops-for-pytorch==3.0.1 torch==2.13.0 numpy==2.4.6
# Expected:
#   On one datum and one linear layer, KFAC is exact: it equals the GGN. For a subclass whose
#   forward feeds 3*x to the weight, either the same, or the NotImplementedError that parameters
#   of other unsupported layers get.
# Seen:
#   Exact for nn.Linear. For the subclass the input factor is taken from the module's own input,
#   before its forward scales it, so KFAC is 9 times smaller than the GGN of the same library,
#   with no error and no warning.
# Output seen:
#   nn.Linear: GGN/KFAC trace 1.000, relative gap 0.000, warnings 0
#   subclass : GGN/KFAC trace 9.000, relative gap 0.889, warnings 0
#   seen: KFAC takes the subclass for a plain Linear, 9 times too small, no warning
# Pointer:
#   the installed class picks its layers by isinstance over (Linear, Conv2d),
#   KFACLinearOperator._SUPPORTED_MODULES; no public issue found.
# Exit: 0 behaves as stated, 1 the behaviour changed, 2 the packages would not install.
set -euo pipefail
export OMP_NUM_THREADS=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq curvlinops-for-pytorch==3.0.1 torch==2.13.0 numpy==2.4.6 || exit 2
HOME="$tmp" "$tmp/venv/bin/python" - "$tmp" <<'EOF'
import sys, warnings
import torch
from torch import nn
from curvlinops import GGNLinearOperator, KFACLinearOperator

class Scaled(nn.Linear):
    """A Linear whose forward multiplies its input by three."""
    def forward(self, x):
        return super().forward(3 * x)

def gap(kind):
    torch.manual_seed(0)
    layer = kind(3, 2, bias=False)
    data = [(torch.randn(1, 3), torch.randn(1, 2))]      # one datum: KFAC is exact
    args = (nn.Sequential(layer), nn.MSELoss(), [layer.weight], data)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kfac = KFACLinearOperator(*args, fisher_type="type-2")
        exact = GGNLinearOperator(*args)
        eye = torch.eye(kfac.shape[0])
        a, b = kfac @ eye, exact @ eye
    said = [w for w in said if not issubclass(w.category, DeprecationWarning)]
    return (b.trace() / a.trace()).item(), ((a - b).norm() / b.norm()).item(), len(said)

plain = gap(nn.Linear)
custom = gap(Scaled)
print("nn.Linear: GGN/KFAC trace %.3f, relative gap %.3f, warnings %d" % plain)
print("subclass : GGN/KFAC trace %.3f, relative gap %.3f, warnings %d" % custom)
if plain[1] > 1e-4:
    sys.exit("changed: KFAC no longer exact for the plain layer")
if abs(custom[0] - 9) > 0.01 or custom[2]:
    sys.exit("changed: KFAC accounts for, or warns about, the subclass")
print("seen: KFAC takes the subclass for a plain Linear, 9 times too small, no warning")
EOF
