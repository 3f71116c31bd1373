#!/usr/bin/env python3
"""Checks the PTX of the quantization kernels: no fused multiply-add, no approximate division. Ends with a line that scripts/test counts."""
import re
import sys

FUSED = re.compile(r"^\s*(?:@%p\d+ )?(((?:fma|mad)\.(?:rn|rz|rm|rp)\S*|div\.(?:approx|full)\S*|rcp\.approx\S*|ex2\S*)\s.*)$", re.M)
# QLinearAdd is written with fused multiply-adds (integer_math.h), two an element: so many times are they in a kernel, for a thread's four elements and the loop over the
# rest; one makes its constant. No other kernel may have one, nor may these have more.
WRITTEN = {"Add": 10, "PlanSum": 1}
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
    found = [m[1] for m in FUSED.finditer(body)]
    written = next((n for name, n in WRITTEN.items() if re.search(rf"\d{name}E", kernel)), 0)
    if len(found) != written or any(not f.startswith("fma.rn.f32") for f in found):
        print(f"{kernel}: {written} fused multiply-adds are written, {len(found)} found", *found, sep="\n  ")
        failed += 1
print(f"{len(bodies)} kernels")
print(f"{0 if failed else 1} passed, {1 if failed else 0} failed")
sys.exit(1 if failed else 0)
