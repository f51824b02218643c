#!/usr/bin/env bash
# mnist1d: make_dataset reseeds the caller's global numpy and random generators.
#
# Packages (Python 3.11):
#   mnist1d==0.0.2.post1 numpy==2.4.6 scipy==1.17.1
# Expected:
#   Building the data set from its own args.seed leaves the caller's generators as they were.
# Seen:
#   It seeds numpy's and random's global generators with args.seed (42) and leaves them so. Runs
#   that differ only in a seed set before the data set is built then draw the same numpy and
#   random numbers, which makes a spread over seeds too small. torch's generator is left alone.
# Output seen:
#   seeds 1, 2, 3 without the data set: [(0.417022, 0.134364), (0.435995, 0.956034), (0.550798, 0.237965)]
#   seeds 1, 2, 3 after make_dataset  : [(0.36803, 0.639427), (0.36803, 0.639427), (0.36803, 0.639427)]
#   seen: after make_dataset every seed's run draws the same numpy and random numbers
# Pointer:
#   set_seed(args.seed) in mnist1d/data.py, random.seed and np.random.seed in mnist1d/utils.py
#   of the installed package; no public issue found.
# Exit: 0 behaves as stated, 1 the behaviour changed, 2 the packages would not install.
set -euo pipefail
export OMP_NUM_THREADS=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq mnist1d==0.0.2.post1 numpy==2.4.6 scipy==1.17.1 || exit 2
HOME="$tmp" "$tmp/venv/bin/python" - "$tmp" <<'EOF'
import random, sys
import numpy as np
from mnist1d.data import get_dataset_args, make_dataset

def draws(seed, build):
    """The first global draws of a run seeded by its user."""
    np.random.seed(seed)
    random.seed(seed)
    if build:
        args = get_dataset_args()
        args.num_samples = 100
        make_dataset(args)
    return round(np.random.rand(), 6), round(random.random(), 6)

without = [draws(seed, False) for seed in (1, 2, 3)]
with_data = [draws(seed, True) for seed in (1, 2, 3)]
print("seeds 1, 2, 3 without the data set:", without)
print("seeds 1, 2, 3 after make_dataset  :", with_data)
if len(set(without)) != 3:
    sys.exit("changed: seeds alone no longer differ")
if len(set(with_data)) != 1:
    sys.exit("changed: make_dataset leaves the caller's generators alone")
print("seen: after make_dataset every seed's run draws the same numpy and random numbers")
EOF
