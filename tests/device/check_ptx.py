#!/usr/bin/env python3
"""Checks the PTX of the quantization kernels: no fused multiply-add, no approximate division. Ends with a line that scripts/test counts."""
import re
import sys

FUSED = re.compile(r"^\s*(?:@%p\d+ )?(((?:fma|mad)\.(?:rn|rz|rm|rp)\S*|div\.(?:approx|full)\S*|rcp\.approx\S*|ex2\S*)\s.*)$", re.M)
# QLinearAdd is written with fused multiply-adds (integer_math.h); no other kernel may have one.
WRITTEN = {"AddCodes": "fma.rn.f32"}
WANTED = (*WRITTEN, "FakeQuantFour", "FakeQuantI", "RangeSums", "CodedSums", "RangeGradients", "Dequantize")

text = open(sys.argv[1]).read()
bodies = {m[1]: m[2] for m in re.finditer(r"\.entry (\w+)\((.*?)^}", text, re.M | re.S)}
failed = 0
for name in WANTED:
    if not any(name in kernel for kernel in bodies):
        print(f"no kernel {name} in {sys.argv[1]}")
        failed += 1
if not any("div.rn.f32" in body and "cvt.rni" in body for body in bodies.values()):
    print("no kernel divides and rounds: is this the PTX of the quantization kernels?")
    failed += 1
for kernel, body in bodies.items():
    written = next((i for name, i in WRITTEN.items() if re.search(rf"\d{name}E", kernel)), None)
    for m in FUSED.finditer(body):
        if m[2] == written:
            continue
        print(f"{kernel}: {m[1]}")
        failed += 1
print(f"{len(bodies)} kernels")
print(f"{0 if failed else 1} passed, {1 if failed else 0} failed")
sys.exit(1 if failed else 0)
