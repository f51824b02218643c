#!/usr/bin/env bash
# torch: swa_utils.update_bn leaves the running statistics of InstanceNorm as they are, without a word.
#
# Packages (Python 3.11):
#   torch==2.13.0 numpy==2.4.6
# Expected:
#   A layer that evaluates with running statistics (InstanceNorm with track_running_stats=True)
#   gets those of the averaged weights, as BatchNorm does; or a warning says that it does not.
# Seen:
#   In a model whose only such layers are InstanceNorms update_bn does not even read the loader.
#   Beside a BatchNorm it does, and InstanceNorm moves by its momentum from the old statistics on,
#   where those of BatchNorm are reset and become the average of all batches.
# Output seen:
#   BatchNorm alone: mean 4.99, batches read 20
#   InstanceNorm alone: mean 0.00, batches read 0
#   InstanceNorm behind BatchNorm, from a mean of 100: mean 12.16, of its inputs 0.00
#   seen: update_bn still passes InstanceNorm by
# Pointer:
#   The documentation of torch.optim.swa_utils.update_bn speaks of BatchNorm only; nothing says
#   what becomes of other layers with running statistics.
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
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

torch.manual_seed(0)
batches = [5 + torch.randn(8, 3, 50) for _ in range(20)]


def updated(model):
    """The averaged model after update_bn, and how many batches that read."""
    average, read = AveragedModel(model), []
    update_bn((read.append(1) or x for x in batches), average)
    return average.module, len(read)


found = {}
for name, layer in (
    ("BatchNorm", nn.BatchNorm1d(3)),
    ("InstanceNorm", nn.InstanceNorm1d(3, track_running_stats=True)),
):
    model, count = updated(nn.Sequential(layer))
    found[name] = model[0].running_mean.mean().item(), count
    print(f"{name} alone: mean {found[name][0]:.2f}, batches read {count}")
both = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True))
both[1].running_mean.fill_(100.0)
behind = updated(both)[0][1].running_mean.mean().item()
print(f"InstanceNorm behind BatchNorm, from a mean of 100: mean {behind:.2f}, of its inputs 0.00")
if abs(found["BatchNorm"][0] - 5) > 0.1 or found["BatchNorm"][1] != 20:
    sys.exit("changed: update_bn no longer gives BatchNorm the mean of the data")
if found["InstanceNorm"] != (0.0, 0) or abs(behind - 100 * 0.9**20) > 0.1:
    sys.exit("changed: update_bn now does something about InstanceNorm")
print("seen: update_bn still passes InstanceNorm by")
EOF
