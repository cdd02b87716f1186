"""Writes quantize.json: values of many sizes, and how llama.cpp's `gguf` package quantizes them.

Run with gguf 0.19.0 and numpy: python make_quantize.py > quantize.json
"""
import base64
import json

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import quantize

rng = np.random.default_rng(5)
blocks = [rng.standard_normal(32) * scale for scale in (0.02, 1, 300)]
blocks += [
    rng.uniform(0.5, 0.6, 32),  # far from zero, close together
    np.zeros(32),
    np.full(32, -3),
    np.arange(32) - 16,  # on the grid, its largest magnitude on one side
    np.tile([1, -1], 16),  # and on both
    np.tile([127, -63.5, 0.5, 1.5], 8),  # between two quants of Q8_0
    rng.standard_normal(32) * 1e-6,  # scales that are subnormal halves
    rng.standard_normal(32) * 1e-9,  # and that are none
]
blocks[2][7] = 65504  # the largest half
values = np.concatenate(blocks).astype("<f4")

cases = []
for kind in (Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q8_0):
    cases.append({
        "type": kind.name,
        "values": base64.b64encode(values.tobytes()).decode(),
        "bytes": base64.b64encode(quantize(values.reshape(1, -1), kind).tobytes()).decode(),
    })
print(json.dumps(cases, indent=1))
