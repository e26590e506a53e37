#!/usr/bin/env bash
# Makes a CUDA toolchain (nvcc, headers, libraries, a driver to link against) from PyPI packages, on a machine that needs
# neither a GPU nor an installer:
#
#     deploy/cuda/toolchain.sh [FOLDER]      # default: target/cuda; takes 1.2 GB
#
# It prints the exports that make FOLDER the CUDA_HOME of a shell. What is there already is kept.
set -euo pipefail

folder=${1:-"$(dirname "${BASH_SOURCE[0]}")/../../target/cuda"}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
site=$folder/site home=$folder/home

# One release of CUDA, 13.0: what its drivers (580 and newer) run, and what the packages below agree on.
packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-nvrtc==13.0.88
    nvidia-cublas==13.0.2.14
    nvidia-curand==10.4.0.35
)

# 1. The packages unpack to one tree. It is moved into place whole, so that a broken download is not taken for it.
if [[ ! -d $site ]]; then
    rm -rf "$site.part"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$site.part" \
        "${packages[@]}" >&2
    mv "$site.part" "$site"
fi
tree=$site/nvidia/cu13

# 2. A CUDA_HOME as installers lay it out: the packages have libraries under their full names only.
rm -rf "$home"
mkdir -p "$home/lib64/stubs"
for part in bin include nvvm; do
    ln -s "$tree/$part" "$home/$part"
done
for library in "$tree"/lib/*; do
    name=$(basename "$library")
    ln -s "$library" "$home/lib64/$name"
    plain=${name%%.so.*}.so
    if [[ $name == *.so.* && ! -e $home/lib64/$plain ]]; then
        ln -s "$library" "$home/lib64/$plain"
    fi
done
ln -s lib64 "$home/lib"

# 3. The driver comes with the kernel module and is in no package. To link, its names are enough: one empty function for each, by
# whatever name the header has it (some are macros for a newer one).
grep -oE '\bcu[A-Z][A-Za-z0-9]*(_v[0-9]+)?(_ptsz|_ptds)?\b' "$home/include/cuda.h" |
    sed -E 's/_(ptsz|ptds)$//; s/_v[0-9]+$//' | sort -u |
    while read -r name; do
        for version in '' _v2 _v3 _v4; do
            printf 'void %s%s(void) {}\nvoid %s%s_ptsz(void) {}\n' "$name" "$version" "$name" "$version"
        done
    done >"$folder/driver.c"
"${CC:-cc}" -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$home/lib64/stubs/libcuda.so" "$folder/driver.c"

"$home/bin/nvcc" --version >&2

# 4. What a shell needs. CUDA_COMPUTE_CAP and CUDARC_CUDA_VERSION are read by the build scripts of candle and cudarc.
cat <<EXPORTS
export CUDA_HOME='$home'
export CUDA_PATH='$home'
export PATH='$home/bin':"\$PATH"
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-90}"
export CUDARC_CUDA_VERSION=13000
export LIBRARY_PATH='$home/lib64:$home/lib64/stubs'
export LD_LIBRARY_PATH='$home/lib64'
EXPORTS
