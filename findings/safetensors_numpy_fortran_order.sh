#!/usr/bin/env bash
# safetensors: numpy arrays that are not C-ordered are written with their numbers shuffled.
#
# Packages (Python 3.11):
#   safetensors==0.8.0 numpy==2.4.6
# Expected:
#   save_file and load_file give back an equal array for any memory layout, as np.save does, or
#   refuse the layout, as safetensors.torch does for a tensor that is not contiguous.
# Seen:
#   A transposed or Fortran-ordered array comes back with the right shape and dtype and its
#   values in memory order. No error and no warning. Any weight saved as w.T is hit.
# Output seen:
#   saved  w.T: [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
#   loaded w.T: [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
#   round trip equal: {'C order': True, 'w.T': False, 'asfortranarray(w)': False, 'np.save of w.T': True}
#   seen: a transposed array comes back with its right shape and its numbers shuffled
# Pointer:
#   safetensors/safetensors issue 825 (open), which says that 0.7.0 was right.
# Exit: 0 behaves as stated, 1 the behaviour changed, 2 the packages would not install.
set -euo pipefail
export OMP_NUM_THREADS=1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -qq safetensors==0.8.0 numpy==2.4.6 || exit 2
HOME="$tmp" "$tmp/venv/bin/python" - "$tmp" <<'EOF'
import io, os, sys
import numpy as np
from safetensors.numpy import load_file, save_file

path = os.path.join(sys.argv[1], "w.safetensors")
w = np.arange(6.0).reshape(2, 3)

def back(a):
    save_file({"w": a}, path)
    return load_file(path)["w"]

def npy(a):
    buffer = io.BytesIO()
    np.save(buffer, a)
    buffer.seek(0)
    return np.load(buffer)

print("saved  w.T:", w.T.tolist())
print("loaded w.T:", back(w.T).tolist())
same = {"C order": np.array_equal(back(w), w), "w.T": np.array_equal(back(w.T), w.T),
        "asfortranarray(w)": np.array_equal(back(np.asfortranarray(w)), w),
        "np.save of w.T": np.array_equal(npy(w.T), w.T)}
print("round trip equal:", same)
if not same["C order"] or not same["np.save of w.T"]:
    sys.exit("changed: the C-ordered array, or numpy's own format, no longer round trips")
if same["w.T"] or same["asfortranarray(w)"]:
    sys.exit("changed: Fortran-ordered arrays now round trip")
print("seen: a transposed array comes back with its right shape and its numbers shuffled")
EOF
