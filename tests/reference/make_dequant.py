"""Makes tests/fixtures/gguf/dequant.safetensors: blocks of every supported GGML type and the values they stand for.

    python3 tests/reference/make_dequant.py

`TYPE.bytes` is U8 [rows, bytes per row]; `TYPE.values` is F32 [rows, 512], by gguf.quants.dequantize. Rows are quantised
along their columns. Types that the gguf package can only read get random blocks with moderate scales.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "gguf" / "dequant.safetensors"
COLUMNS = 512
FEW, MANY = 8, 40

ROWS = {
    Type.F32: FEW,
    Type.F16: FEW,
    Type.BF16: FEW,
    Type.Q4_0: MANY,
    Type.Q4_1: MANY,
    Type.Q5_0: FEW,
    Type.Q5_1: FEW,
    Type.Q8_0: MANY,
    Type.Q4_K: MANY,
    Type.Q5_K: FEW,
    Type.Q6_K: FEW,
}

# Byte offset of each f16 field in a block, and the range it is drawn from; all other bytes are random.
SCALES = {
    Type.Q4_K: {0: (1e-4, 1e-2), 2: (1e-4, 1e-2)},
    Type.Q5_K: {0: (1e-4, 1e-2), 2: (1e-4, 1e-2)},
    Type.Q6_K: {208: (1e-4, 1e-2)},
}


def quantised(rng: np.random.Generator, kind: Type, rows: int) -> np.ndarray:
    matrix = rng.normal(0, 0.1, (rows, COLUMNS)).astype(np.float32)
    matrix[0] = 0
    matrix[1] *= np.linspace(0, 30, COLUMNS, dtype=np.float32)  # every block another scale
    matrix[2] = -np.abs(matrix[2])
    return quantize(matrix, kind).view(np.uint8).reshape(rows, -1)


def random_blocks(rng: np.random.Generator, kind: Type, rows: int) -> np.ndarray:
    values, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, COLUMNS // values, size), dtype=np.uint8)
    for offset, (low, high) in SCALES[kind].items():
        sign = rng.choice([-1, 1], blocks.shape[:2]) if offset == 208 else 1  # Q6_K's d may be negative
        scales = (sign * rng.uniform(low, high, blocks.shape[:2])).astype("<f2")
        blocks[..., offset : offset + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def main() -> None:
    tensors = {}
    for kind, rows in ROWS.items():
        rng = np.random.default_rng(zlib.crc32(kind.name.encode()))
        data = random_blocks(rng, kind, rows) if kind in SCALES else quantised(rng, kind, rows)
        values = dequantize(data, kind).astype(np.float32)
        assert values.shape == (rows, COLUMNS) and np.isfinite(values).all(), kind
        tensors[f"{kind.name}.bytes"] = np.ascontiguousarray(data)
        tensors[f"{kind.name}.values"] = values
        print(f"{kind.name:<5} {data.shape} bytes, values within {np.abs(values).max():.3f}")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, OUT)
    OUT.chmod(0o644)


if __name__ == "__main__":
    main()
