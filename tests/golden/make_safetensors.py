"""Makes and checks the safetensors goldens with the reference library (pip: safetensors, numpy).

python.safetensors    written here, every element type; tests/io/safetensors_test.cpp reads it.
detent.safetensors    written by Detent (the test case "writer_bytes" compares against it); `--check` reads it back here.
"""
import struct, sys
from pathlib import Path
import numpy as np
from safetensors import TensorSpec, serialize_file, safe_open

HERE = Path(__file__).parent


def tensors():
    ramp = np.arange(6).reshape(2, 3)
    half = np.array([0x0000, 0x8000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0xFC00, 0x7E00], np.uint16)
    return {
        "bool": ("bool", np.array([1, 0, 1], np.uint8)),
        "u8": ("uint8", np.array([0, 128, 255], np.uint8)),
        "i8": ("int8", np.array([-128, 0, 127], np.int8)),
        "i16": ("int16", np.array([-32768, 32767], np.int16)),
        "u16": ("uint16", np.array([0, 65535], np.uint16)),
        "f16": ("float16", half),
        "bf16": ("bfloat16", np.array([0x3F80, 0xC000, 0x7F80], np.uint16)),
        "i32": ("int32", np.array([-(2**31), 2**31 - 1], np.int32)),
        "u32": ("uint32", np.array([0, 2**32 - 1], np.uint32)),
        "f32": ("float32", (ramp * 0.1).astype(np.float32)),
        "f64": ("float64", np.array([1 / 3, 1e300, -0.0])),
        "i64": ("int64", np.array([-(2**63), 2**53 + 1], np.int64)),
        "u64": ("uint64", np.array([2**63 - 1], np.uint64)),
        "scalar": ("float32", np.array(2.5, np.float32)),
        "empty": ("float32", np.zeros((0, 3), np.float32)),
        "name \u00e9 \"quoted\"": ("float32", np.array([7], np.float32)),
    }


def write():
    kept = tensors()
    data = {k: TensorSpec(dtype=d, shape=list(a.shape), data_ptr=a.ctypes.data, data_len=a.nbytes) for k, (d, a) in kept.items()}
    serialize_file(data, HERE / "python.safetensors", {"made by": "tests/golden/make_safetensors.py", "\u00e9": "\u00fc"})


def check():
    path = HERE / "detent.safetensors"
    with safe_open(path, "numpy") as f:
        assert f.metadata() == {"format": "pt", "quote": 'a "b"'}, f.metadata()
        got = {k: f.get_tensor(k) for k in f.keys()}
    assert set(got) == {"a", "b.weight", "codes", "steps", "none", "scalar"}, sorted(got)
    assert got["a"].dtype == np.float32 and (got["a"] == np.array([[1, -2, 3.5], [0, 1e-30, 4]], np.float32)).all()
    assert got["b.weight"].dtype == np.int32 and (got["b.weight"] == [7, -8]).all()
    assert got["codes"].dtype == np.uint8 and (got["codes"] == [0, 200, 255]).all()
    assert got["steps"].dtype == np.int64 and (got["steps"] == [2**40]).all()
    assert got["none"].shape == (0, 4)
    assert got["scalar"].shape == () and got["scalar"] == np.float32(0.25)
    (n,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert (8 + n) % 8 == 0
    print("detent.safetensors reads back")


if __name__ == "__main__":
    check() if "--check" in sys.argv else write()
