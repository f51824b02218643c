#!/usr/bin/env bash
# torchinfo, thop, fvcore, torch: four counts of one linear layer, apart by 10 times and down to 0.
#
# Packages (Python 3.11):
#   torchinfo==1.8.0 thop==0.1.1.post2209072238 fvcore==0.1.5.post20221221 torch==2.13.0
#   numpy==2.4.6
# Expected:
#   Up to the convention (a multiply-add is one or two operations) four tools agree on one
#   nn.Linear without bias, also on a (batch, sequence, feature) input and also for a subclass
#   that changes nothing.
# Seen:
#   They agree on a 2-d input. On the same 40 rows given as 4 x 10, torchinfo counts the batch
#   and leaves out the sequence: 10 times too few. thop looks the class up exactly, so a
#   subclass of nn.Linear counts 0. Nothing is printed about either.
# Output seen:
#   Linear, 40 rows  torch/2 40960 fvcore 40960 torchinfo 40960 thop 40960
#   Linear, 4 x 10   torch/2 40960 fvcore 40960 torchinfo 4096 thop 40960
#   subclass, 4 x 10 torch/2 40960 fvcore 40960 torchinfo 4096 thop 0
#   seen: torchinfo leaves out the sequence length, thop counts a subclass as 0
# Pointer:
#   torchinfo issue 77 (TylerYep/torchinfo), closed by pull request 318; 1.8.0 does not have
#   that fix.
# Exit: 0 behaves as stated, 1 the behaviour changed, 2 the packages would not install.
set -euo pipefail
export OMP_NUM_THREADS=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq torchinfo==1.8.0 thop==0.1.1.post2209072238 \
    fvcore==0.1.5.post20221221 torch==2.13.0 numpy==2.4.6 || exit 2
HOME="$tmp" "$tmp/venv/bin/python" - "$tmp" <<'EOF'
import sys, warnings
warnings.filterwarnings("ignore")
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from fvcore.nn import FlopCountAnalysis
from thop import profile
from torchinfo import summary

class Own(nn.Linear):
    """Same layer, own class."""

def macs(layer, x):
    with FlopCounterMode(display=False) as counter:
        layer(x)
    return {
        "torch/2": counter.get_total_flops() // 2,
        "fvcore": int(FlopCountAnalysis(layer, x).total()),
        "torchinfo": int(summary(layer, input_data=x, verbose=0).total_mult_adds),
        "thop": int(profile(layer, (x,), verbose=False)[0]),
    }

true = 4 * 10 * 32 * 32                               # batch, sequence, in, out
rows = {
    "Linear, 40 rows ": macs(nn.Linear(32, 32, bias=False), torch.randn(40, 32)),
    "Linear, 4 x 10  ": macs(nn.Linear(32, 32, bias=False), torch.randn(4, 10, 32)),
    "subclass, 4 x 10": macs(Own(32, 32, bias=False), torch.randn(4, 10, 32)),
}
for name, row in rows.items():
    print(name, " ".join(f"{tool} {n}" for tool, n in row.items()))
flat, seq, own = rows.values()
if set(flat.values()) != {true}:
    sys.exit("changed: the four tools no longer agree on a plain 2-d input")
if seq != {"torch/2": true, "fvcore": true, "torchinfo": true // 10, "thop": true}:
    sys.exit("changed: counts for the 3-d input")
if own != {"torch/2": true, "fvcore": true, "torchinfo": true // 10, "thop": 0}:
    sys.exit("changed: counts for the subclass")
print("seen: torchinfo leaves out the sequence length, thop counts a subclass as 0")
EOF
