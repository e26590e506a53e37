#!/usr/bin/env bash
# Compiles every kernel of src/kernels/cuda to PTX, for each generation of GPU that is meant: one file after the other, and all
# together as NVRTC is given them. What nvcc warns of is an error.
#
#     deploy/cuda/check.sh [FOLDER]      # of deploy/cuda/toolchain.sh; default: target/cuda
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

folder=${1:-target/cuda}
nvcc=$folder/home/bin/nvcc
if [[ ! -x $nvcc ]]; then
    echo "there is no $nvcc: run deploy/cuda/toolchain.sh first" >&2
    exit 1
fi
kernels=src/kernels/cuda
ptx=$folder/ptx
mkdir -p "$ptx"

# As mod.rs puts them together.
grep -oE '"[a-z_]+\.cuh?"' $kernels/mod.rs | tr -d '"' | while read -r name; do
    cat "$kernels/$name"
done >"$ptx/all.cu"

flags=(-std=c++17 -Werror all-warnings -Xcompiler -Wall,-Wextra,-Werror)
for generation in 80 90; do
    for source in "$kernels"/*.cu "$ptx/all.cu"; do
        out=$ptx/$(basename "$source" .cu).sm_$generation.ptx
        "$nvcc" "${flags[@]}" -arch="sm_$generation" -ptx -o "$out" "$source"
        printf '%s: %s kernels\n' "$(basename "$out")" "$(grep -c '^\.visible \.entry' "$out")"
    done
    # What each takes is known once it is machine code.
    "$nvcc" "${flags[@]}" -arch="sm_$generation" -cubin -Xptxas -v -o "$ptx/all.sm_$generation.cubin" "$ptx/all.cu" 2>&1 |
        awk '/entry function/ { split($0, name, "\047"); kernel = name[2] }
             /spill stores/ { spilled = $5 }
             /Used [0-9]+ registers/ { print "  " kernel ": " $5 " registers, " spilled " bytes spilled" }'
    LD_LIBRARY_PATH=$folder/home/lib64 python3 -B deploy/cuda/nvrtc.py "$folder/home" "$ptx/all.cu" "compute_$generation"
done
