"""Values and gradients of a small network (conv, batch norm, ReLU, max pool, conv with groups, residual add, global pool, dense, smoothed cross-entropy)
from PyTorch in double (pip: torch, numpy, safetensors); written in Detent's layouts as small_network.safetensors, read by
tests/autograd/network_test.cpp. Inputs are representable in float32."""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

torch.manual_seed(3)
torch.set_default_dtype(torch.float64)


def draw(*shape, scale=1.0):
    return (torch.randn(*shape) * scale).float().double().requires_grad_()


leaves = {
    "x": draw(3, 3, 11, 9),
    "conv1.w": draw(6, 3, 3, 3, scale=0.3),
    "conv1.b": draw(6, scale=0.1),
    "bn.gamma": draw(6),
    "bn.beta": draw(6),
    "conv2.w": draw(6, 3, 3, 3, scale=0.3),
    "dense.w": draw(5, 6),
    "dense.b": draw(5),
}
labels = torch.tensor([4, 0, 2])
mean, var = torch.zeros(6), torch.ones(6)
p = leaves
y = F.conv2d(p["x"], p["conv1.w"], p["conv1.b"], stride=2, padding=1)
y = F.batch_norm(y, mean, var, p["bn.gamma"], p["bn.beta"], training=True, momentum=0.1, eps=1e-5)
y = F.max_pool2d(F.relu(y), 3, stride=2, padding=1)
y = F.relu(y + F.conv2d(y, p["conv2.w"], padding=1, groups=2))
logits = F.linear(y.mean(dim=(2, 3)), p["dense.w"], p["dense.b"])
loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
loss.backward()


def here(t):  # NCHW and OIHW become NHWC and OHWI
    t = t.detach()
    return np.ascontiguousarray((t.permute(0, 2, 3, 1) if t.dim() == 4 else t).numpy().astype(np.float32))


out = {k: here(v) for k, v in leaves.items()}
out |= {"grad." + k: here(v.grad) for k, v in leaves.items()}
out |= {"logits": here(logits), "loss": here(loss.reshape(1)), "running_mean": here(mean), "running_var": here(var), "labels": labels.numpy()}
save_file(out, Path(__file__).parent / "small_network.safetensors", {"made by": f"tests/golden/make_small_network.py, torch {torch.__version__}"})
