"""Writes tests/golden/onnx/: small ONNX models of every operator the importer knows, and what ONNX Runtime computes with them (NAME.safetensors: x, y).
usage: make_onnx.py [RESNET20.onnx]     needs numpy, onnx, onnxruntime, safetensors; with the model also the logits of resnet20-cifar10 for a generated image"""
import os
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh
from safetensors.numpy import save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "onnx")
rng = np.random.default_rng(7)


class Net:
    def __init__(self, name, shape, opset=17):
        self.name, self.shape, self.opset = name, shape, opset
        self.nodes, self.inits, self.count = [], [], 0

    def const(self, value, name=None):
        name = name or f"c{len(self.inits)}"
        self.inits.append(nh.from_array(np.asarray(value), name))
        return name

    def f(self, *shape, name=None, scale=0.5):
        return self.const((rng.standard_normal(shape) * scale).astype(np.float32), name)

    def i(self, *values):
        return self.const(np.array(values, np.int64))

    def op(self, op, *inputs, outputs=1, **attributes):
        self.count += 1
        names = [f"v{self.count}" + ("" if outputs == 1 else f"_{k}") for k in range(outputs)]
        self.nodes.append(h.make_node(op, list(inputs), names, name=f"{op}_{self.count}", **attributes))
        return names[0] if outputs == 1 else names

    def save(self, y, batch="N"):
        self.nodes[-1].output[0] = "y"
        assert self.nodes[-1].output[0] == "y" and y
        graph = h.make_graph(self.nodes, self.name, [h.make_tensor_value_info("x", T.FLOAT, [batch] + self.shape)], [h.make_tensor_value_info("y", T.FLOAT, None)], self.inits)
        m = h.make_model(graph, opset_imports=[h.make_opsetid("", self.opset)])
        m.ir_version = 10 if self.opset >= 21 else 8
        m = onnx.shape_inference.infer_shapes(m)
        onnx.checker.check_model(m, full_check=True)
        x = rng.standard_normal([2] + self.shape).astype(np.float32)
        o = ort.SessionOptions()
        o.log_severity_level = 3
        out = ort.InferenceSession(m.SerializeToString(), o, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        onnx.save(m, os.path.join(HERE, self.name + ".onnx"))
        save_file({"x": x, "y": np.ascontiguousarray(out)}, os.path.join(HERE, self.name + ".safetensors"))
        print(self.name, out.shape)


def shuffle():
    """Channel shuffle, split, concatenation, mean over space; shapes computed from Shape chains."""
    n = Net("shuffle", [8, 6, 5])
    a, b = n.op("Split", "x", n.i(4, 4), outputs=2, axis=1)
    b = n.op("Conv", b, n.f(4, 1, 3, 3, name="depth.weight"), n.f(4, name="depth.bias"), group=4, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    c = n.op("Concat", a, b, axis=1)
    s = n.op("Shape", c)
    size = n.op("Unsqueeze", n.op("Gather", s, n.const(np.array(0, np.int64)), axis=0), n.i(0))
    rows = n.op("Unsqueeze", n.op("Gather", s, n.const(np.array(2, np.int64)), axis=0), n.i(0))
    d = n.op("Reshape", c, n.op("Concat", size, n.i(2), n.i(4), rows, n.i(5), axis=0))
    e = n.op("Reshape", n.op("Transpose", d, perm=[0, 2, 1, 3, 4]), n.i(0, -1, 6, 5))
    n.save(n.op("Gemm", n.op("ReduceMean", e, axes=[2, 3], keepdims=0), n.f(8, 3, name="w"), n.f(3)))


def activations():
    n = Net("activations", [5, 4, 7])
    v = n.op("PRelu", "x", n.f(5, 1, 1, name="act.weight"))
    v = n.op("Add", n.op("LeakyRelu", v, alpha=0.2), n.op("HardSwish", v))
    v = n.op("Sub", n.op("HardSigmoid", v, alpha=0.3, beta=0.4), n.op("Sigmoid", v))
    v = n.op("Mul", n.op("Tanh", v), n.op("Clip", "x", n.const(np.float32(-1)), n.const(np.float32(0.7))))
    v = n.op("Div", n.f(1, 5, 1, 1), n.op("Softplus", v))
    v = n.op("Div", n.op("Sub", n.op("Mul", v, n.const(np.float32(1.5))), n.f(5, 1, 1)), n.const(np.array([1, 2, 3, 4, 5, 6, 7], np.float32)))
    v = n.op("Relu", n.op("Dropout", n.op("Identity", v)))
    n.save(n.op("Softmax", n.op("Squeeze", n.op("GlobalAveragePool", v), n.i(2, 3)), axis=1))


def windows():
    """Pools, padding of every kind, resizing, batch norm, dilation; Flatten of a feature map before Gemm."""
    n = Net("windows", [3, 17, 15], opset=13)
    v = n.op("Conv", "x", n.f(6, 3, 3, 3, name="stem.weight"), auto_pad="SAME_UPPER", strides=[2, 2])
    var = n.const(rng.uniform(0.5, 2, 6).astype(np.float32), "bn.running_var")
    v = n.op("BatchNormalization", v, n.f(6, name="bn.weight"), n.f(6, name="bn.bias"), n.f(6, name="bn.running_mean"), var)
    v = n.op("Conv", v, n.f(6, 3, 3, 3, name="dil.weight"), n.f(6, name="dil.bias"), group=2, dilations=[2, 2], pads=[2, 1, 2, 3])
    v = n.op("Pad", v, n.i(0, 0, 1, 0, 0, 2, 0, 1))
    v = n.op("MaxPool", v, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    a = n.op("AveragePool", v, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    b = n.op("AveragePool", v, kernel_shape=[2, 2], auto_pad="SAME_LOWER")
    v = n.op("Add", a, b)
    v = n.op("Resize", v, "", n.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    v = n.op("Resize", v, "", "", n.i(2, 8, 7, 9), mode="linear", coordinate_transformation_mode="half_pixel")
    v = n.op("Slice", v, n.i(1, 0), n.i(2**63 - 1, -1), n.i(2, -1), n.i(2, 1))
    v = n.op("Relu", n.op("Flatten", v))
    v = n.op("Add", n.op("MatMul", v, n.f(8 * 3 * 8, 4, name="fc")), n.f(4))
    n.save(v, batch=2)


def images_last():
    """A network that takes [n,h,w,c], as exporters of TensorFlow networks write them, with transposes around its layers."""
    n = Net("images_last", [6, 8, 3])
    v = n.op("Transpose", "x", perm=[0, 3, 1, 2])
    v = n.op("Relu", n.op("Conv", v, n.f(4, 3, 3, 3), pads=[1, 1, 1, 1]))
    v = n.op("Transpose", v, perm=[0, 2, 3, 1])
    v = n.op("Mul", v, n.f(4))
    v = n.op("Unsqueeze", n.op("Slice", n.op("Flatten", v), n.i(3), n.i(170), n.i(1), n.i(7)), n.i(1))
    n.save(n.op("Squeeze", v, n.i(1)))


def spread():
    """Flattened feature maps read by other things than Gemm, and an output that is a feature map."""
    n = Net("spread", [3, 4, 4], opset=21)
    v = n.op("Conv", "x", n.f(5, 3, 1, 1))
    f = n.op("Flatten", v)
    g = n.op("Reshape", n.op("Relu", n.op("Mul", f, n.f(80))), n.i(0, 5, 4, 4))
    r = n.op("Transpose", n.op("Reshape", g, n.i(0, 5, 2, 2, 4)), perm=[0, 1, 3, 2, 4])
    n.save(n.op("Add", n.op("Reshape", r, n.i(-1, 5, 4, 4)), v))


def quantized():
    """QDQ as other tools write it: int8 activations, weights per channel along either axis, 4-bit weights, a float weight behind Q and DQ."""
    n = Net("quantized", [3, 6, 6], opset=21)

    def qdq(x, scale, zero):
        s, z = n.const(np.float32(scale)), n.const(zero)
        return n.op("DequantizeLinear", n.op("QuantizeLinear", x, s, z), s, z)

    v = qdq("x", 0.02, np.int8(3))
    w = n.op("DequantizeLinear", n.const(rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8), "conv.weight"), n.const(rng.uniform(0.002, 0.01, 4).astype(np.float32)), axis=0)
    b = n.op("DequantizeLinear", n.const(rng.integers(-900, 900, 4).astype(np.int32), "conv.bias"), n.const(np.full(4, 1e-4, np.float32)), axis=0)
    v = qdq(n.op("Relu", n.op("Conv", v, w, b, pads=[1, 1, 1, 1])), 0.03, np.uint8(0))
    s, z = n.const(np.float32(0.01)), n.const(np.int8(0))
    w = n.op("DequantizeLinear", n.op("QuantizeLinear", n.f(4, 4, 1, 1, name="second.weight"), s, z), s, z)
    v = qdq(n.op("Conv", v, w), 0.05, np.uint8(120))
    v = n.op("Flatten", qdq(n.op("GlobalAveragePool", v), 0.02, np.uint8(110)))
    w = n.op("DequantizeLinear", n.const(rng.integers(-127, 128, (4, 5)).astype(np.int8), "fc.weight"), n.const(rng.uniform(0.002, 0.01, 5).astype(np.float32)), axis=1)
    n.save(qdq(n.op("MatMul", v, w), 0.01, np.uint8(128)))


def pads():
    """F.pad as PyTorch's TorchScript exporter writes it, its pads turned around by constants' slices; slices of constants in other steps."""
    n = Net("pads", [3, 6, 5])
    zeros = n.op("ConstantOfShape", n.i(4), value=nh.from_array(np.zeros(1, np.int64)))
    pairs = n.op("Reshape", n.op("Concat", n.i(0, 1, 2, 0), zeros, axis=0), n.i(-1, 2))
    pairs = n.op("Transpose", n.op("Slice", pairs, n.i(-1), n.i(1 - 2**63), n.i(0), n.i(-1)), perm=[1, 0])
    v = n.op("Pad", "x", n.op("Cast", n.op("Reshape", pairs, n.i(-1)), to=T.INT64), "")
    v = n.op("Add", v, n.op("Slice", n.f(3, 8, 13), n.i(-1, 100, -1), n.i(1 - 2**63, 0, -100), n.i(0, 2, 1), n.i(-1, -2, -1)))
    n.save(n.op("Add", v, n.op("Slice", n.f(17), n.i(-4), n.i(-20), n.i(0), n.i(-(2**63)))))


def resnet20(path):
    i = np.arange(2 * 3 * 32 * 32, dtype=np.uint64)
    x = ((i * 2654435761 % 2**32) / 2**32 * 4 - 2).astype(np.float32).reshape(2, 32, 32, 3)
    y = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})[0]
    save_file({"y": y}, os.path.join(HERE, "resnet20.safetensors"))


if __name__ == "__main__":
    os.makedirs(HERE, exist_ok=True)
    for make in (shuffle, activations, windows, images_last, spread, quantized, pads):
        make()
    if len(sys.argv) > 1:
        resnet20(sys.argv[1])
