"""Goldens of tests/nn from PyTorch (pip: torch, torchvision, numpy, safetensors): nn.safetensors and torchvision_names.txt.
The ResNet-20 is written here from He et al. 2015 with option-A shortcuts. Its weights are a formula of name and position (draw), which
tests/nn/models_test.cpp evaluates again, so that only images and logits are stored. The optimizers follow 12 gradients that are a formula too."""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from safetensors.numpy import save_file
from torch import nn

HERE = Path(__file__).parent
M64 = (1 << 64) - 1


def draw(name, n):
    """n floats in [-0.5, 0.5), multiples of 2^-24: SplitMix64 of (FNV-1a of the name) + position."""
    h = 1469598103934665603
    for c in name.encode():
        h = ((h ^ c) * 1099511628211) & M64
    with np.errstate(over="ignore"):
        z = np.uint64(h) + (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) * 2.0**-24 - 0.5).astype(np.float32)


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.side = (cout - cin) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.side:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.side, self.side))
        return F.relu(y + x)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        width = 16
        for s in range(3):
            out = 16 << s
            self.add_module(f"layer{s + 1}", nn.Sequential(*[Block(width if b == 0 else out, out, 2 if s and b == 0 else 1) for b in range(3)]))
            width = out
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def value_of(name, shape):
    u = draw(name, int(np.prod(shape)))
    if name.endswith("running_var"):
        v = u + np.float32(1)
    elif "bn" in name and name.endswith("weight"):
        v = u * np.float32(0.5) + np.float32(1)
    elif len(shape) == 4:
        v = u * np.float32(0.25)
    else:
        v = u
    return torch.from_numpy(v.reshape(shape)).double()


net = ResNet20().double().eval()
state = {k: value_of(k, tuple(v.shape)) for k, v in net.state_dict().items() if "num_batches" not in k}
net.load_state_dict(state, strict=False)
images = torch.from_numpy(draw("images", 2 * 3 * 32 * 32).reshape(2, 3, 32, 32) * np.float32(4)).double()
out = {"images": images.permute(0, 2, 3, 1).contiguous().float().numpy()}
with torch.no_grad():
    out["logits"] = net(images).float().numpy()

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "momentum_decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.1),
    "adam_decay": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.01),
}
for name, make in OPTIMIZERS.items():
    w = torch.from_numpy(draw("start", 9)).double().requires_grad_()
    optimizer = make([w])
    for step in range(12):
        w.grad = torch.from_numpy(draw(f"gradient{step}", 9)).double()
        optimizer.step()
    out["optimizer." + name] = w.detach().float().numpy()

save_file(out, HERE / "nn.safetensors", {"made by": f"tests/golden/make_nn.py, torch {torch.__version__}"})
lines = []
for arch in ("resnet18", "resnet34", "resnet50"):
    model = getattr(torchvision.models, arch)()
    lines += [f"{arch} {k} {'x'.join(map(str, v.shape))}" for k, v in model.state_dict().items() if "num_batches" not in k]
(HERE / "torchvision_names.txt").write_text("\n".join(lines) + "\n")
