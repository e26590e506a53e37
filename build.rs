//! With `--features cuda`: compiles the kernels of `src/kernels/cuda` for GPUs, into one file that the program carries.

use std::{
    env, fs,
    path::PathBuf,
    process::{self, Command},
};

/// In the order in which they include each other.
const SOURCES: [&str; 7] =
    ["norm.cu", "attention.cu", "lora.cu", "bias.cu", "gate.cu", "greedy.cu", "linear.cu"];

/// Machine code for the generations that are meant, and for all later ones what a driver makes it of.
const TARGETS: [&str; 2] =
    ["arch=compute_80,code=[sm_80,compute_80]", "arch=compute_90,code=sm_90"];

#[expect(clippy::disallowed_methods, reason = "it is how cargo speaks to it")]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/kernels/cuda");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo says it"))
        .join("src/kernels/cuda");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says it"));
    let includes =
        SOURCES.map(|source| format!("#include \"{}\"\n", folder.join(source).display()));
    let all = out.join("kernels.cu");
    fs::write(&all, includes.concat()).expect("OUT_DIR can be written");
    let nvcc = env::var_os("CUDA_HOME")
        .map_or_else(|| PathBuf::from("nvcc"), |home| PathBuf::from(home).join("bin/nvcc"));
    let mut command = Command::new(&nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin"]);
    command.args(TARGETS.iter().flat_map(|target| ["-gencode", target]));
    command.arg("-o").arg(out.join("kernels.fatbin")).arg(&all);
    let status = command.status().unwrap_or_else(|error| {
        let nvcc = nvcc.display();
        eprintln!(
            "{nvcc}: {error}; the feature `cuda` takes CUDA's compiler: see deploy/cuda/README.md"
        );
        process::exit(1)
    });
    assert!(status.success(), "{} failed: {status}", nvcc.display());
}
