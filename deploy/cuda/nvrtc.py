"""Compiles one source with NVRTC, which knows less of C++ and of its headers than nvcc does.

    nvrtc.py CUDA_HOME SOURCE ARCHITECTURE      # LD_LIBRARY_PATH has CUDA_HOME/lib64"""

import ctypes
import pathlib
import sys


def main(home: str, source: str, architecture: str) -> None:
    nvrtc = ctypes.CDLL("libnvrtc.so.13")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def text(of: str) -> bytes:
        getattr(nvrtc, f"nvrtcGet{of}Size")(program, ctypes.byref(size))
        room = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{of}")(program, room)
        return room.value

    options = [f"--gpu-architecture={architecture}", f"--include-path={home}/include", "--std=c++17"]
    given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), pathlib.Path(source).read_bytes(), b"chorus.cu", 0, None, None)
    failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
    log = text("ProgramLog").decode().strip()
    if failed or log:
        sys.exit(f"NVRTC, {architecture}: {log}")
    print(f"NVRTC, {architecture}: {text('PTX').count(b'.visible .entry')} kernels")


main(*sys.argv[1:])
