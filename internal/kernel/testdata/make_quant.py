"""Writes quant.json: random blocks of every quantized type, and the values that llama.cpp's `gguf` package reads in them.

Run with gguf 0.19.0 and numpy: python make_quant.py > quant.json
"""
import base64
import json

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

BLOCKS = 3
# Where in a block the halves lie: whatever the other bytes are, they are finite.
HALVES = {
    Type.F16: [0], Type.BF16: [], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}

rng = np.random.default_rng(4)
cases = []
for kind, halves in HALVES.items():
    length, size = GGML_QUANT_SIZES[kind]
    blocks = BLOCKS if length > 1 else 64
    data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    if kind == Type.BF16:
        data[:, 1] &= 0xBF  # magnitudes below 2: no Inf, no NaN
    for at in halves:
        scale = (rng.standard_normal(blocks) * 0.1).astype(np.float16)
        scale[0] = 3e-7  # a subnormal half
        data[:, at:at + 2] = scale.view(np.uint8).reshape(blocks, 2)
    values = dequantize(data.reshape(1, -1), kind).astype("<f4")
    cases.append({
        "type": kind.name,
        "src": base64.b64encode(data.tobytes()).decode(),
        "values": base64.b64encode(values.tobytes()).decode(),
    })
print(json.dumps(cases, indent=1))
