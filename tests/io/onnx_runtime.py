"""Runs FOLDER/NAME.onnx and NAME.qdq.onnx in ONNX Runtime at each optimization level, and compares with NAME.safetensors: x, y of the float network, q of the quantized one,
step between two codes of q. Exit status 0 when all load, floats agree to 1e-5 of the largest, and of q at most 2 % of the values are off, by one step.
usage: onnx_runtime.py FOLDER     needs numpy, onnxruntime, safetensors"""
import glob
import sys

import numpy as np
import onnxruntime as ort
from safetensors.numpy import load_file

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def problem(path, level, x, want, step):
    o = ort.SessionOptions()
    o.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    o.intra_op_num_threads, o.log_severity_level = 1, 4
    try:
        got = ort.InferenceSession(path, o, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    except Exception as e:  # ONNX Runtime's exceptions have no common base of their own
        return str(e)[:200]
    if got.shape != want.shape:
        return f"shape {got.shape}, {want.shape} expected"
    off = np.abs(got - want)
    if step is None:
        return None if off.max() <= 1e-5 * max(1.0, np.abs(want).max()) else f"off by {off.max():.3g}"
    return None if off.max() < 1.5 * step and (off > 0.5 * step).mean() <= 0.02 else f"{(off > 0.5 * step).mean():.1%} off, by up to {off.max() / step:.1f} steps"


def main():
    bad = runs = 0
    for data in sorted(glob.glob(sys.argv[1] + "/*.safetensors")):
        t = load_file(data)
        for kind, want, step in ((".onnx", t["y"], None), (".qdq.onnx", t["q"], t["step"][0])):
            path = data.replace(".safetensors", kind)
            for level in LEVELS:
                runs += 1
                p = problem(path, level, t["x"], want, step)
                if p:
                    bad += 1
                    print(f"{path} {level}: {p}")
    print(f"{runs} runs in ONNX Runtime {ort.__version__}, {bad} differ or do not load")
    return 0 if runs and not bad else 1


if __name__ == "__main__":
    sys.exit(main())
