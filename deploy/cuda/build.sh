#!/usr/bin/env bash
# Builds the server for GPUs, with a toolchain from PyPI (toolchain.sh) where CUDA_HOME names none: the program is
# target/release/chorus of the folder that is built into, target/cuda/build.
#
#     deploy/cuda/build.sh [ARGUMENTS OF CARGO BUILD]
#
# It takes a quarter of an hour more than the other build: candle's kernels are compiled by nvcc. CUDA_COMPUTE_CAP chooses the
# generation that those are for (90, an H100 or H200); the server's own run on all from 80 on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [[ -z ${CUDA_HOME:-} ]]; then
    exports=$(deploy/cuda/toolchain.sh)
    eval "$exports"
fi
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/cuda/build}
cargo build --locked --release --features cuda "$@"
program=$CARGO_TARGET_DIR/release/chorus
ls -l "$program"
# What the machine that it runs on must have.
objdump -p "$program" | awk '/NEEDED/ { print "  needs " $2 }'
