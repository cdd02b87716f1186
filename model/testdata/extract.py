"""Writes reference.json: what the tiny models of testdata/ compute, in float64 by PyTorch.

The numbers are those of vectors/train/train.json of the shared vectors (base weights, no adapter), whose README states the conventions and
the implementations it was checked against. Run: python extract.py path/to/vectors/train/train.json > reference.json
"""
import json
import sys

train = json.load(open(sys.argv[1]))
samples = {s["name"]: s for s in train["samples"]}
cases = [
    {"model": model["file"], **samples[case["sample"]], "loss": case["loss"], "last_logits": case["last_logits"]}
    for model in train["models"].values()
    for case in model["cases"]
]
print("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]")
