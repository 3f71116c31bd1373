"""Writes tests/golden/integer_add.safetensors: sums of codes as ONNX Runtime's QLinearAdd rounds them, mostly where quantize(a + b) in floats gives another code.
usage: make_integer_add.py     needs numpy, onnx, onnxruntime, safetensors"""
import os

import numpy as np
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh
from safetensors.numpy import save_file

rng = np.random.default_rng(11)
f = np.float32


def added(a, b, sa, za, sb, zb, sc, zc):
    def dq(x, s, z, y):
        return h.make_node("DequantizeLinear", [x, s, z], [y])

    nodes = [dq("a", "sa", "za", "af"), dq("b", "sb", "zb", "bf"), h.make_node("Add", ["af", "bf"], ["s"]), h.make_node("QuantizeLinear", ["s", "sc", "zc"], ["c"])]
    values = dict(sa=f(sa), sb=f(sb), sc=f(sc), za=np.uint8(za), zb=np.uint8(zb), zc=np.uint8(zc))
    graph = h.make_graph(nodes, "add", [h.make_tensor_value_info(n, T.UINT8, a.shape) for n in "ab"], [h.make_tensor_value_info("c", T.UINT8, a.shape)],
                         [nh.from_array(np.array(v), n) for n, v in values.items()])
    m = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)])
    m.ir_version = 8
    return ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"a": a, "b": b})[0]


def main():
    a, b = (v.astype(np.uint8).ravel()[None] for v in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
    scales, zeros, rows = [], [], []
    for i in range(120):
        sa, sb = f(rng.uniform(0.001, 0.1)), f(rng.uniform(0.001, 0.1))
        sc = f((sa + sb) * rng.uniform(0.3, 1))
        if i % 4 == 0:  # commensurable: many exact ties
            sb, sc = f(sa * rng.choice([0.5, 1, 1.5])), f(sa * rng.choice([1, 2, 4]))
        za, zb, zc = (int(v) for v in rng.integers(0, 256, 3))
        c = added(a, b, sa, za, sb, zb, sc, zc)
        v = (sa * (a.astype(f) - f(za))).astype(f) + (sb * (b.astype(f) - f(zb))).astype(f)
        plain = np.clip(np.rint((v / sc).astype(f)) + zc, 0, 255)
        differ = np.flatnonzero(plain != c)
        chosen = np.concatenate([rng.permutation(differ)[:40], rng.integers(0, a.size, 20)])
        scales.append([sa, sb, sc])
        zeros.append([za, zb, zc])
        rows += [[i, a[0, k], b[0, k], c[0, k]] for k in chosen]
    rows = np.array(rows, np.int32)
    save_file({"scales": np.array(scales, f), "zero_points": np.array(zeros, np.int32), "rows": rows}, os.path.join(os.path.dirname(os.path.abspath(__file__)), "integer_add.safetensors"))
    print(rows.shape)


if __name__ == "__main__":
    main()
