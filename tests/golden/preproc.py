"""Golden images of tests/engine/test_preproc.c: pictures of every kind, drawn here, and what torchvision
makes of them.

Writes preproc/<name>.jpg|png and preproc/<name>.rgb, the bytes after Resize and CenterCrop of the PIL
image, and prints the table for the test and how far torchvision's tensor path (antialias=True) is away: at most
one level.
16-bit grey is the one departure: PIL's convert("RGB") saturates above 255, here the high byte is taken.
"""
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms import CenterCrop, InterpolationMode, Resize
from torchvision.transforms.functional import pil_to_tensor

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "preproc")
BILINEAR = InterpolationMode.BILINEAR


def picture(w, h, seed):
    """Gradients, discs, stripes and some noise: smooth areas and hard edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    img = np.stack([x / w * 200 + 30, y / h * 220, 255 - (x + y) / (w + h) * 240], -1)
    for _ in range(6):
        cx, cy, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.05, 0.3) * min(w, h)
        img[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.uniform(0, 255, 3)
    img[(x // 3 % 2 == 0) & (y > 0.8 * h)] = 255
    return np.clip(img + rng.normal(0, 3, img.shape), 0, 255).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, colour, interlaced=False):
    """A PNG of [h][w][channels] uint8 or uint16 samples: what PIL cannot write."""
    h, w = samples.shape[:2]
    depth = samples.dtype.itemsize * 8
    adam7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for x0, y0, dx, dy in adam7 if interlaced else [(0, 0, 1, 1)]:
        part = samples[y0::dy, x0::dx]
        if part.size:
            rows += b"".join(b"\0" + row.astype(samples.dtype.newbyteorder(">")).tobytes() for row in part)
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, int(interlaced))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9))
            + chunk(b"IEND", b""))


def encode(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.fromarray(picture(90, 60, 3)), "JPEG", quality=85, exif=exif)


def palette():
    image = Image.fromarray(picture(75, 50, 4)).quantize(32)
    return encode(image, "PNG", transparency=3, optimize=True)


def alpha(mode):
    rgba = np.dstack([picture(50, 41, 5), np.arange(50 * 41).reshape(41, 50) % 256]).astype(np.uint8)
    return encode(Image.fromarray(rgba).convert(mode), "PNG", optimize=True)


def cmyk(ycck=False):
    data = encode(Image.fromarray(picture(64, 48, 6)).convert("CMYK"), "JPEG", quality=80)
    if ycck:  # the Adobe marker's last byte is the transform
        at = data.index(b"Adobe") + 11
        data = data[:at] + b"\2" + data[at + 1:]
    return data


def grey16():
    wide = picture(40, 30, 7)[:, :, :1].astype(np.uint16) * 257
    wide[::2] ^= 0x55
    return png(wide, 0)


def rgb16():
    return png(picture(33, 33, 8).astype(np.uint16) * 256 + 0xff, 2)


# name, extension, bytes, mode ("short" or "squash"), resize, crop
CASES = [
    ("photo", "jpg", encode(Image.fromarray(picture(400, 300, 1)), "JPEG", quality=60), "short", 64, 56),
    ("progressive", "jpg", encode(Image.fromarray(picture(131, 97, 2)), "JPEG", quality=75,
                                  progressive=True, subsampling=2), "short", 37, 32),
    ("grey", "jpg", encode(Image.fromarray(picture(60, 80, 9)).convert("L"), "JPEG"), "squash", 41, 41),
    ("rotated", "jpg", rotated(), "short", 48, 48),
    ("cmyk", "jpg", cmyk(), "short", 40, 32),
    ("ycck", "jpg", cmyk(True), "short", 40, 32),
    ("palette", "png", palette(), "short", 32, 32),
    ("rgba", "png", alpha("RGBA"), "squash", 32, 32),
    ("grey_alpha", "png", alpha("LA"), "short", 32, 27),
    ("grey16", "png", grey16(), "short", 24, 24),
    ("rgb16", "png", rgb16(), "short", 24, 19),
    ("bits", "png", encode(Image.fromarray(picture(61, 45, 10)).convert("1"), "PNG"), "short", 32, 32),
    ("interlaced", "png", png(picture(37, 29, 11), 2, True), "short", 29, 24),
    ("enlarged", "png", encode(Image.fromarray(picture(20, 31, 12)), "PNG"), "short", 48, 48),
    ("narrow", "png", encode(Image.fromarray(picture(7, 150, 13)), "PNG"), "short", 32, 32),
    ("pixel", "png", encode(Image.fromarray(picture(1, 1, 14)), "PNG"), "short", 16, 16),
]


def to_rgb(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def main():
    os.makedirs(OUT, exist_ok=True)
    for name, kind, data, mode, resize, crop in CASES:
        image = to_rgb(data)
        size = resize if mode == "short" else (resize, resize)
        want = np.asarray(CenterCrop(crop)(Resize(size, BILINEAR)(image)))
        tensor = CenterCrop(crop)(Resize(size, BILINEAR, antialias=True)(pil_to_tensor(image)))
        away = np.abs(tensor.permute(1, 2, 0).numpy().astype(int) - want)
        with open(os.path.join(OUT, "%s.%s" % (name, kind)), "wb") as f:
            f.write(data)
        with open(os.path.join(OUT, name + ".rgb"), "wb") as f:
            f.write(want.tobytes())
        print('        {"%s", "%s", TK_RESIZE_%s, %d, %d}, /* tensor path: mean %.3f, max %d */'
              % (name, kind, mode.upper(), resize, crop, away.mean(), away.max()))


if __name__ == "__main__":
    main()
