"""Keras .h5 weight files in the layout that keras.applications' ResNet50 has, written with h5py and random values.
usage: make_keras.py              the small goldens in tests/golden/keras/: every kind of layer of the network, few channels, and the arrays expected (NumPy)
       make_keras.py FOLDER       the whole network in both families of names (100 MB each) and the logits and probabilities that PyTorch computes with it"""
import os
import sys

import h5py
import numpy as np
from safetensors.numpy import save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "keras")
rng = np.random.default_rng(11)


def layers(width):
    """(new name, old name, kind, shape) of the whole ResNet50; width divides the channels."""
    out = []

    def conv_bn(new, old_conv, old_bn, k, cin, cout):
        out.append((new + "_conv", old_conv, "conv", (k, k, cin, cout)))
        out.append((new + "_bn", old_bn, "bn", (cout,)))

    conv_bn("conv1", "conv1", "bn_conv1", 7, 3, 64 // width)
    cin = 64 // width
    for stage, (blocks, mid) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512)), 2):
        mid //= width
        for b in range(blocks):
            new, old = f"conv{stage}_block{b + 1}", f"{stage}{'abcdef'[b]}_branch"
            if b == 0:
                conv_bn(new + "_0", "res" + old + "1", "bn" + old + "1", 1, cin, 4 * mid)
            for part, (k, ci, co) in zip("abc", ((1, cin, mid), (3, mid, mid), (1, mid, 4 * mid))):
                conv_bn(f"{new}_{'abc'.index(part) + 1}", f"res{old}2{part}", f"bn{old}2{part}", k, ci, co)
            cin = 4 * mid
    out.append(("predictions", "fc1000", "dense", (cin, 1000 // width)))
    return out


def arrays(kind, shape):
    n = lambda *s, scale=1.0, shift=0.0: (rng.standard_normal(s) * scale + shift).astype(np.float32)  # noqa: E731
    if kind == "bn":
        return {"gamma": n(*shape, scale=0.1, shift=1), "beta": n(*shape, scale=0.1), "moving_mean": n(*shape, scale=0.1), "moving_variance": rng.uniform(0.5, 1.5, shape).astype(np.float32)}
    fan = int(np.prod(shape[:-1]))
    return {"kernel": n(*shape, scale=(1.5 / fan) ** 0.5), "bias": n(shape[-1], scale=0.05)}


def write(path, weights, old):
    """As Keras' save_weights: a group per layer, attributes with the names, data sets called LAYER/KIND:0 inside; layers without weights have empty groups."""
    with h5py.File(path, "w") as f:
        names = [w[1 if old else 0] for w in weights]
        f.attrs["layer_names"] = np.array([n.encode() for n in ["input_1"] + names + ["flatten_1"]])
        f.attrs["backend"] = b"tensorflow"
        f.attrs["keras_version"] = b"2.0.6" if old else b"2.4.0"
        for name, (_, _, _, values) in zip(names, weights):
            g = f.create_group(name)
            g.attrs["weight_names"] = np.array([f"{name}/{k}:0".encode() for k in values])
            for k, v in values.items():
                g.create_dataset(f"{name}/{k}:0", data=v)
        for empty in ("input_1", "flatten_1"):
            f.create_group(empty).attrs["weight_names"] = np.array([], dtype="S1")


def write_keras3(path, weights, whole_model):
    """As Keras 3: model.save("x.h5") has the layers' own names (without ":0"), save_weights("x.weights.h5") only their classes and numbers."""
    with h5py.File(path, "w") as f:
        for i, (name, _, _, values) in enumerate(weights):
            for k, (kind, v) in enumerate(values.items()):
                f.create_dataset(f"model_weights/{name}/{name}/{kind}" if whole_model else f"layers/layer_{i}/vars/{k}", data=v)
        f.create_group("optimizer_weights" if whole_model else "_layer_checkpoint_dependencies")


def expected(weights):
    kinds = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    out = {}
    for new, _, _, values in weights:
        for k, v in values.items():
            out[f"{new}.{kinds[k]}"] = np.ascontiguousarray(np.moveaxis(v, (3, 2), (0, 1)) if v.ndim == 4 else v.T if v.ndim == 2 else v)
    return out


def forward(weights, x):
    """The network in PyTorch functions, from the layer list alone."""
    import torch
    import torch.nn.functional as F

    t = {k: torch.from_numpy(v).double() for k, v in expected(weights).items()}

    def conv_bn(p, v, stride=1, pad=0):
        v = F.conv2d(v, t[p + "_conv.weight"], t[p + "_conv.bias"], stride, pad)
        return F.batch_norm(v, t[p + "_bn.running_mean"], t[p + "_bn.running_var"], t[p + "_bn.weight"], t[p + "_bn.bias"], False, 0.0, 1.001e-5)

    v = F.relu(conv_bn("conv1", F.pad(x.double(), (3, 3, 3, 3)), 2))
    v = F.max_pool2d(F.pad(v, (1, 1, 1, 1)), 3, 2)
    for stage, blocks in enumerate((3, 4, 6, 3), 2):
        for b in range(1, blocks + 1):
            p, s = f"conv{stage}_block{b}", 2 if stage > 2 and b == 1 else 1
            short = conv_bn(p + "_0", v, s) if b == 1 else v
            y = F.relu(conv_bn(p + "_1", v, s))
            y = F.relu(conv_bn(p + "_2", y, 1, 1))
            v = F.relu(short + conv_bn(p + "_3", y))
    return F.linear(v.mean((2, 3)), t["predictions.weight"], t["predictions.bias"]).float().numpy()


def write_seeds(folder):
    """Seeds of the fuzz target: one small layer of each kind, plain, as a whole model, compressed, and in HDF5's newer format."""
    os.makedirs(folder, exist_ok=True)
    values = {"conv/kernel:0": np.arange(24).reshape(2, 2, 3, 2), "conv/bias:0": np.arange(2), "bn/gamma:0": np.ones(2), "bn/moving_variance:0": np.ones(2), "fc/kernel:0": np.arange(6).reshape(2, 3)}
    forms = {"plain": {}, "packed": {"compression": "gzip", "shuffle": True, "fletcher32": True}, "chunked": {"chunks": True}, "doubles": {"dtype": "f8"}}
    for form, options in forms.items():
        with h5py.File(os.path.join(folder, form + ".h5"), "w") as f:
            for name, v in values.items():
                f.create_dataset(name, data=v.astype(options.get("dtype", "f4")), **{k: o for k, o in options.items() if k != "dtype"})
    with h5py.File(os.path.join(folder, "model.h5"), "w") as f:
        f.attrs["keras_version"] = b"2.4.0"
        f.create_dataset("model_weights/conv/conv/bias:0", data=np.arange(2, dtype="f4"))
        f.create_dataset("optimizer_weights/iter:0", data=np.int64(3))
    with h5py.File(os.path.join(folder, "newest.h5"), "w", libver="latest") as f:
        f.create_dataset("conv/bias:0", data=np.arange(2, dtype="f4"))
        f.create_dataset("conv/kernel:0", data=np.arange(24, dtype="f4").reshape(2, 2, 3, 2), chunks=(1, 2, 3, 2))


def main():
    if len(sys.argv) > 1:
        import torch

        folder = sys.argv[1]
        weights = [(new, old, kind, arrays(kind, shape)) for new, old, kind, shape in layers(1)]
        write(os.path.join(folder, "new.h5"), weights, False)
        write(os.path.join(folder, "old.h5"), weights, True)
        x = rng.standard_normal((1, 64, 64, 3)).astype(np.float32)
        save_file({"x": x, "y": forward(weights, torch.from_numpy(x).permute(0, 3, 1, 2))}, os.path.join(folder, "forward.safetensors"))
        return
    os.makedirs(HERE, exist_ok=True)
    # One layer of each kind of name: the stem, a shortcut, a block in the middle, the last block, the classifier.
    chosen = ("conv1_", "conv2_block1_", "conv4_block6_", "conv5_block3_", "predictions")
    weights = [(new, old, kind, arrays(kind, shape)) for new, old, kind, shape in layers(32) if new.startswith(chosen)]
    weights = [w for w in weights if sum(v.size for v in w[3].values()) < 1500]
    write(os.path.join(HERE, "new.h5"), weights, False)
    write(os.path.join(HERE, "old.h5"), weights, True)
    write_keras3(os.path.join(HERE, "keras3_model.h5"), weights, True)
    write_keras3(os.path.join(HERE, "keras3.weights.h5"), weights[:3], False)
    save_file(expected(weights), os.path.join(HERE, "expected.safetensors"))
    with h5py.File(os.path.join(HERE, "external.h5"), "w") as f:
        f.create_group("conv1")["conv1"] = h5py.ExternalLink("new.h5", "/conv1_conv/conv1_conv")
    with h5py.File(os.path.join(HERE, "virtual.h5"), "w") as f:
        layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
        layout[:] = h5py.VirtualSource("new.h5", "x", shape=(4,))
        f.create_group("conv1").create_virtual_dataset("bias:0", layout)
    with h5py.File(os.path.join(HERE, "outside.h5"), "w") as f:
        f.create_group("conv1").create_dataset("bias:0", shape=(4,), dtype="f4", external=[("/etc/hostname", 0, 16)])
    with h5py.File(os.path.join(HERE, "huge.h5"), "w") as f:
        f.create_group("conv1").create_dataset("bias:0", shape=(2**28,), dtype="f4", chunks=(2**20,))
    write_seeds(os.path.join(HERE, "../../fuzz/corpus/keras_h5"))
    for name in os.listdir(HERE):
        print(name, os.path.getsize(os.path.join(HERE, name)))


if __name__ == "__main__":
    main()
