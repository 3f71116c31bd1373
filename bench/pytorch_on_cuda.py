#!/usr/bin/env python3
"""ResNet-50 training steps of PyTorch on a GPU, random images: the opponent of resnet50_bench --device cuda. One JSON line.

  bench/pytorch_on_cuda.py --precision f32|tf32|bf16 [--mode train|eval|qat-train] [--batch 256] [--steps 20]

f32: strict; tf32: matrix products and convolutions in TF32; bf16: autocast with channels_last. qat-train: torch.ao's learnable fake-quant on weights and activations
of every convolution and linear layer (its own formulas; for orientation). Rates are of steps timed by CUDA events after warm-up."""
import argparse
import json

import torch
import torchvision


class FakeQuantized(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.weight_scale = torch.nn.Parameter(layer.weight.detach().abs().max().reshape(1) / 127)
        self.weight_zero = torch.nn.Parameter(torch.zeros(1))
        self.scale = torch.nn.Parameter(torch.full((1,), 0.05))
        self.zero = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        w = torch._fake_quantize_learnable_per_tensor_affine(self.layer.weight, self.weight_scale, self.weight_zero, -128, 127, 1.0)
        if isinstance(self.layer, torch.nn.Conv2d):
            y = self.layer._conv_forward(x, w, self.layer.bias)
        else:
            y = torch.nn.functional.linear(x, w, self.layer.bias)
        return torch._fake_quantize_learnable_per_tensor_affine(y, self.scale, self.zero, -128, 127, 1.0)


def quantize(module):
    for name, child in module.named_children():
        if isinstance(child, (torch.nn.Conv2d, torch.nn.Linear)):
            setattr(module, name, FakeQuantized(child))
        else:
            quantize(child)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="tf32")
    p.add_argument("--mode", choices=["train", "eval", "qat-train"], default="train")
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--warmup", type=int, default=10)
    a = p.parse_args()
    tf32 = a.precision != "f32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    net = torchvision.models.resnet50()
    if a.mode == "qat-train":
        quantize(net)
    net = net.cuda().to(memory_format=torch.channels_last)
    net.train(a.mode != "eval")
    images = torch.randn(a.batch, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.arange(a.batch, device="cuda") * 37 % 1000
    sgd = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, fused=True)

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=a.precision == "bf16"):
            if a.mode == "eval":
                with torch.no_grad():
                    return net(images)
            loss = torch.nn.functional.cross_entropy(net(images), labels)
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()

    for _ in range(a.warmup):
        step()
    rates = []
    for _ in range(a.steps):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        rates.append(a.batch / (start.elapsed_time(end) * 1e-3))
    rates.sort()
    print(json.dumps({"mode": a.mode, "precision": a.precision, "batch": a.batch, "torch": torch.__version__, "gpu": torch.cuda.get_device_name(),
                      "images_per_second": {"median": rates[len(rates) // 2], "min": rates[0], "max": rates[-1]}, "peak_gpu_bytes": torch.cuda.max_memory_allocated()}))


if __name__ == "__main__":
    main()
