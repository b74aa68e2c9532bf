"""Malformed pictures: damaged ones, bombs, other files by a picture's name, and what is no file at all."""

import random
import struct
import zlib

from hypothesis import strategies as st

from benchmarks.faults.malformed.base import Folder, Link, NamedPipe, picture
from benchmarks.faults.malformed.mangling import flipped
from benchmarks.faults.watched import Content, Work

FORMS = (
    ("PNG", "RGB", 1),
    ("PNG", "P", 1),
    ("PNG", "1", 1),
    ("PNG", "LA", 1),
    ("PNG", "RGBA", 1),
    ("PNG", "I;16", 1),
    ("PNG", "RGB", 3),
    ("JPEG", "RGB", 1),
    ("JPEG", "L", 1),
    ("JPEG", "CMYK", 1),
    ("MPO", "RGB", 2),
    ("GIF", "P", 1),
    ("GIF", "P", 3),
    ("BMP", "RGB", 1),
    ("BMP", "1", 1),
    ("WEBP", "RGBA", 1),
    ("WEBP", "RGB", 3),
    ("TIFF", "RGB", 1),
    ("TIFF", "F", 1),
    ("TIFF", "CMYK", 2),
    ("TIFF", "I", 1),
    ("ICO", "RGBA", 1),
    ("PPM", "RGB", 1),
    ("TGA", "RGBA", 1),
    ("PCX", "P", 1),
    ("SGI", "RGB", 1),
)

# The marker "executed" appears if somebody runs it: Ghostscript for PostScript, a browser for the rest.
POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%Pages: 1\n%%EndComments\n"
    b"(executed) (w) file closefile\n(%pipe%touch executed) (r) file closefile\nshowpage\n%%EOF\n"
)
OTHERS = (
    b"",
    b"\0" * 1000,
    b"not a picture",
    POSTSCRIPT,
    b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, len(POSTSCRIPT), 0, 0, 0, 0) + b"\xff\xff" + POSTSCRIPT,
    b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><image href="file:///etc/passwd"/></svg>',
    b"<html><script>alert(1)</script><img src='http://127.0.0.1/x.png'></html>",
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/Launch/F(touch executed)>>>>endobj\ntrailer<</Root 1 0 R>>",
    b"push graphic-context\nviewbox 0 0 10 10\nfill 'url(https://127.0.0.1/x\"|touch executed\")'\npop graphic-context",
    b"\xd7\xcd\xc6\x9a" + b"\0" * 60,  # Windows metafile
    b"SIMPLE  =                    T" + b" " * 50 + b"BITPIX  =  8" + b" " * 2800,  # FITS
    b"P6 99999999 99999999 255\n",
    b"P7\nWIDTH 10\n",
    b"#define x_width 99999\n#define x_height 99999\nstatic char x[] = {",  # XBM
)


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG that claims a size, whatever rows it has."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def full_png(width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG of zeros, small as a file: a bomb where it is large."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    packer, row = zlib.compressobj(9), bytes(1 + (width * bits + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return png(width, height, depth, colour, packed)


CLAIMS = (
    (60_000, 60_000),
    (2**31 - 1, 2**31 - 1),
    (2**31 - 1, 1),
    (0, 0),
    (0, 10),
    (10, 0),
    (1, 10_000_000),
    (14_000, 12_000),
    (9_000, 9_000),
)


@st.composite
def contents(draw: st.DrawFn) -> bytes | Content:
    """What lies at a picture's name."""
    generator = random.Random(draw(st.integers(0, 2**32)))
    kind = draw(
        st.sampled_from(
            ["cut"] * 4 + ["flip"] * 8 + ["zeros", "header", "header", "claim", "other", "place", "two", "whole"]
        )
    )
    data = picture(*draw(st.sampled_from(FORMS)))
    if kind == "cut":
        return data[: generator.randrange(len(data))]
    if kind == "flip":
        return flipped(data, generator, generator.choice([1, 1, 2, 4, 64]))
    if kind == "header":
        head = generator.choice([32, 64, 256])
        return flipped(data[:head], generator, generator.choice([1, 2, 8])) + data[head:]
    if kind == "zeros":
        place = generator.randrange(len(data))
        return data[:place] + bytes(min(64, len(data) - place)) + data[place + 64 :]
    if kind == "claim":
        size, form = (
            draw(st.sampled_from(CLAIMS)),
            draw(st.sampled_from([(8, 2), (8, 6), (1, 0), (16, 6), (8, 3), (7, 9)])),
        )
        return png(*size, *form, rows=zlib.compress(bytes(1000)))
    if kind == "other":
        return draw(st.sampled_from(OTHERS))
    if kind == "place":
        names = ["itself.png", "/dev/zero", "/dev/stdin", "/dev/tty", "/proc/self/mem", "nowhere", "/", "/etc/passwd"]
        return draw(st.sampled_from([Folder(), NamedPipe(), *map(Link, names)]))
    return data + picture("JPEG") if kind == "two" else data


@st.composite
def works(draw: st.DrawFn) -> Work:
    """A malformed picture, and the command that reads it."""
    content = draw(contents())
    name = "itself" + draw(st.sampled_from([".png", ".jpg", ".gif", ".tif", ".webp", ".bmp", ".PNG"]))
    how = draw(st.sampled_from(["folder", "file", "question", "batch"]))
    if how == "folder":
        return Work(
            ("profile", "demo:lmm", "--images", "pictures"), {f"pictures/{name}": content, "pictures/a.png": picture()}
        )
    if how == "file":
        return Work(("profile", "demo:lmm", "--images", name), {name: content})
    if how == "question":
        return Work(("apply", "demo:lmm", "--image", name, "--prompt", "What?"), {name: content})
    line = f'{{"image": "{name}", "prompt": "What?"}}\n'.encode()
    call = ("apply", "demo:lmm", "--batch", "in.jsonl", "--out", "out.jsonl")
    return Work(call + draw(st.sampled_from([(), ("--keep-going",)])), {name: content, "in.jsonl": line})
