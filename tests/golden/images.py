"""Makes tests/io/images.golden: pixels as Pillow, torchvision and the definition of TensorFlow 1's bilinear resize give them.

    python tests/golden/images.py tests/io/images.golden        (needs pillow, torchvision, numpy)

Records: a line "NAME NUMBERS... BYTES", then so many bytes. The images are made by a formula that the test repeats.
"""
import io
import sys

import numpy as np
import PIL
import torch
import torchvision
import torchvision.transforms as T
from PIL import Image


def picture(h, w):
    """Waves, an edge and noise: u8 [h,w,3]."""
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij")
    noise = ((y * 7919 + x * 104729 + c * 1299709) * 2654435761 % 2**32) >> 27
    v = 3 * x + 2 * y * (c + 1) + 60 * ((x > w // 2) ^ (y > h // 3)) + noise
    return (v % 256).astype(np.uint8)


def tf1_bilinear(img, oh, ow):
    """out[i] reads in_i = i * in / out (legacy scaler: neither half pixels nor aligned corners), in double."""
    def axis(n_in, n_out):
        pos = np.arange(n_out, dtype=np.float64) * (n_in / n_out)
        lo = np.floor(pos).astype(int)
        return lo, np.minimum(lo + 1, n_in - 1), pos - lo
    y0, y1, fy = axis(img.shape[0], oh)
    x0, x1, fx = axis(img.shape[1], ow)
    v = img.astype(np.float64)
    fx, fy = fx[None, :, None], fy[:, None, None]
    rows = v * 1.0
    left, right = rows[:, x0], rows[:, x1]
    wide = left * (1 - fx) + right * fx
    return wide[y0] * (1 - fy) + wide[y1] * fy


out = open(sys.argv[1], "wb")


def put(name, numbers, data):
    data = bytes(data)
    out.write((" ".join([name] + [str(n) for n in numbers] + [str(len(data))]) + "\n").encode())
    out.write(data)


print("pillow", PIL.__version__, "torchvision", torchvision.__version__, "torch", torch.__version__)

sizes = [(37, 53, 20, 31), (37, 53, 64, 80), (50, 41, 50, 20), (50, 41, 17, 41), (8, 8, 1, 1), (1, 1, 5, 7), (90, 3, 7, 9), (33, 47, 33, 47), (256, 10, 3, 3)]
for ih, iw, oh, ow in sizes:
    img = picture(ih, iw)
    put("pil", (ih, iw, oh, ow), np.asarray(Image.fromarray(img).resize((ow, oh), Image.BILINEAR)).tobytes())
    put("tf1", (ih, iw, oh, ow), tf1_bilinear(img, oh, ow).astype("<f4").tobytes())

jpegs = [("444", dict(quality=90, subsampling=0)), ("422", dict(quality=75, subsampling=1)), ("420", dict(quality=75, subsampling=2)),
         ("progressive", dict(quality=80, progressive=True)), ("restart", dict(quality=80, restart_marker_blocks=2))]
smooth = np.asarray(Image.fromarray(picture(20, 14)).resize((37, 45), Image.BICUBIC))
for name, options in jpegs:
    b = io.BytesIO()
    Image.fromarray(smooth).save(b, "JPEG", **options)
    put("jpeg-" + name, (), b.getvalue())
    rgb = np.asarray(Image.open(io.BytesIO(b.getvalue())).convert("RGB"))
    put("pixels", rgb.shape[:2], rgb.tobytes())
b = io.BytesIO()
Image.fromarray(smooth).convert("L").save(b, "JPEG", quality=85)
put("jpeg-grey", (), b.getvalue())
rgb = np.asarray(Image.open(io.BytesIO(b.getvalue())).convert("RGB"))
put("pixels", rgb.shape[:2], rgb.tobytes())
b = io.BytesIO()
Image.fromarray(smooth).convert("CMYK").save(b, "JPEG", quality=85)
put("cmyk", (), b.getvalue())

normalize = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
for ih, iw in [(60, 91), (77, 40), (37, 37), (20, 33)]:
    # image size 32: the shorter side becomes 256 / 224 of it, rounded
    t = T.Compose([T.Resize(37), T.CenterCrop(32), T.ToTensor(), normalize])(Image.fromarray(picture(ih, iw)))
    put("torchvision", (ih, iw, 32), t.permute(1, 2, 0).contiguous().numpy().astype("<f4").tobytes())
    # keras: both sides times 37 / shorter, rounded half to even; centre crop rounds down; BGR minus mean
    s = np.float32(37) / np.float32(min(ih, iw))
    h, w = int(np.rint(np.float32(ih) * s)), int(np.rint(np.float32(iw) * s))
    big = tf1_bilinear(picture(ih, iw), h, w)
    y, x = (h - 32) // 2, (w - 32) // 2
    bgr = big[y:y + 32, x:x + 32, ::-1] - np.array([103.939, 116.779, 123.68])
    put("keras", (ih, iw, 32), bgr.astype("<f4").tobytes())
t = T.Compose([T.ToTensor(), normalize])(Image.fromarray(picture(32, 32)))
put("cifar", (32, 32, 32), t.permute(1, 2, 0).contiguous().numpy().astype("<f4").tobytes())
# some crops of the padded normalised image, flipped or not, as torchvision's RandomCrop(8, padding=4) and flip behind Normalize can give them
padded = T.Pad(4)(normalize(T.ToTensor()(Image.fromarray(picture(8, 8)))))
for y, x, flip in [(0, 0, 0), (3, 6, 0), (3, 6, 1), (8, 8, 1)]:
    p = padded[:, y : y + 8, x : x + 8]
    p = p.flip(2) if flip else p
    put("padded", (y, x, flip), p.permute(1, 2, 0).contiguous().numpy().astype("<f4").tobytes())
