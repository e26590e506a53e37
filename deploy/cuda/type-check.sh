#!/usr/bin/env bash
# Type-checks and lints the server with `--features cuda` where there is no CUDA: a stand-in takes the place of nvcc and writes
# empty files, which is enough for everything that is not linked; `build.sh` compiles and links. Before that: the server without the
# feature has no crate of CUDA.
#
#     deploy/cuda/type-check.sh [ARGUMENTS OF CARGO CLIPPY]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if crates=$(cargo tree --locked --edges normal,build | grep -iE 'cuda|candle-kernels'); then
    printf 'the build without CUDA has crates of it:\n%s\n' "$crates" >&2
    exit 1
fi

home=$PWD/target/cuda-stand-in
mkdir -p "$home/bin" "$home/include" "$home/lib64"
# cudarc asks for the toolkit's version by its header where nobody says it, and cudaforge nvcc itself.
cat >"$home/bin/nvcc" <<'NVCC'
#!/usr/bin/env bash
set -euo pipefail
case " $* " in
*" --version "*) echo 'Cuda compilation tools, release 13.0, V13.0.0' && exit ;;
*" --list-gpu-code "*) printf 'sm_80\nsm_90\n' && exit ;;
esac
ptx=
while (($#)); do
    case $1 in
    -o) : >"$2" && shift ;;
    --output-directory) ptx=$2 && shift ;;
    *.cu) source=$1 ;;
    esac
    shift
done
if [[ -n $ptx ]]; then
    : >"$ptx/$(basename "${source%.cu}").ptx"
fi
NVCC
chmod +x "$home/bin/nvcc"

export CUDA_HOME=$home CUDA_PATH=$home NVCC=$home/bin/nvcc CUDA_COMPUTE_CAP=90 CUDARC_CUDA_VERSION=13000
cargo clippy --locked --features cuda "$@" -- -D warnings
