"""Image files for tests, also of kinds that Pillow does not write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(array, form, **options):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width, height, bits, colour_type, data):
    """A PNG file of a kind that Pillow does not write."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return signature + content


def rgb_tiff(order, bits):
    """A black TIFF file of 2x2 RGB pixels, which Pillow writes only with 8 bits a channel."""
    after = 8 + 2 + 12 * 9 + 4
    short = {256: 2, 257: 2, 259: 1, 262: 2, 277: 3, 278: 2, 279: 12 * bits // 8}
    entries = {tag: struct.pack(order + "HHIHH", tag, 3, 1, v, 0) for tag, v in short.items()}
    entries[258] = struct.pack(order + "HHII", 258, 3, 3, after)
    entries[273] = struct.pack(order + "HHII", 273, 4, 1, after + 6)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    tags = b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return head + tags + struct.pack(order + "3H", bits, bits, bits) + bytes(12 * bits // 8)


PNG = encoded(random_image(40, 50, 3), "PNG")
JPEG = encoded(random_image(40, 50, 3), "JPEG")
