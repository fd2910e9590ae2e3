"""A folder of strange files: pictures that are odd but good, damaged ones, traps, and names that no table expects."""

import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from aimonk_hf.data.sample_data import draw_garment

GOOD, BAD, EITHER = "good", "bad", "either"


@dataclass(frozen=True)
class Strange:
    """A file of the corpus: whether it can be used ("either" for flipped bits), and words of the reason."""

    name: str
    verdict: str
    reason: str = ""


def make_corpus(folder: Path, n_sources: int = 20, seed: int = 0) -> list[Strange]:
    """Write the files made of `n_sources` drawings, 27 of each, and some that are no regular files."""
    folder.mkdir(parents=True)
    corpus = []
    for number in range(n_sources):
        rng = random.Random(f"{seed} {number}")
        picture = draw_garment(np.random.default_rng([seed, number])).image.resize((40 + number % 7, 48 + number % 5))
        for place, (fault, end, content, verdict, reason) in enumerate(_strange_files(picture, number, rng)):
            name = f"{number:03d}_{place}_{fault}{end}"
            (folder / name).write_bytes(content)
            corpus.append(Strange(name, verdict, reason))
    return corpus + _irregular(folder)


def write_labels(corpus: list[Strange], path: Path) -> None:
    """Write a labels.csv that lists every file, with labels that alternate."""
    rows = ["image,collar,belt\n"]
    for number, file in enumerate(corpus):
        name = file.name.replace('"', '""')
        rows.append(f'"{name}",{number % 2},{("0", "1", "NA")[number % 3]}\n')
    path.write_bytes("".join(rows).encode("utf-8", "surrogateescape"))


def saved(picture: Image.Image, format: str, **options: object) -> bytes:
    """Return the bytes of a picture file."""
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def flipped(content: bytes, rng: random.Random, flips: int) -> bytes:
    """Return the bytes with some bits turned."""
    changed = bytearray(content)
    for _ in range(flips):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def png_of(width: int, height: int) -> bytes:
    """Return a small PNG that claims any size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [head, b"IDAT" + zlib.compress(b"\0" * 1000), b"IEND"]
    packed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def gif_of(width: int, height: int) -> bytes:
    """Return a GIF whose screen and picture claim any size."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\2L\1\0;"


def tiff_of(width: int, height: int) -> bytes:
    """Return an uncompressed grey TIFF that claims any size."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 64}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<L", 72) + bytes(64) + struct.pack("<H", len(tags)) + entries + struct.pack("<L", 0)


def _strange_files(picture: Image.Image, number: int, rng: random.Random) -> Iterator[tuple[str, str, bytes, str, str]]:
    """Yield fault, end of the name, content, verdict and words of the reason of each file made of a picture."""
    format = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")[number % 7]
    yield "plain", f".{format.lower()}", saved(picture, format), GOOD, ""

    format, ending = (("JPEG", ".png"), ("PNG", ".jpg"))[number % 2]
    yield "wrong_extension", ending, saved(picture, format), GOOD, ""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    other = (postscript, b"%PDF-1.7\n", b"PK\3\4", b"<svg/>")[number % 4]
    yield "wrong_extension", ".jpg", other, BAD, "not an image file"

    for format, ending in (("JPEG", ".jpg"), ("PNG", ".png")):
        content = saved(picture, format)
        yield "truncated", ending, content[: len(content) * (8 + number % 2) // 10], BAD, "the image is damaged"

    for format, ending in (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")):
        yield "bit_flipped", ending, flipped(saved(picture, format), rng, 1 + number % 6), EITHER, ""

    yield "zero_bytes", ".jpg", b"", BAD, "the file is empty"
    yield "zero_bytes", ".png", bytes(1000 + number), BAD, "not an image file"

    large = 20_000 + number
    maker, ending = ((png_of, ".png"), (gif_of, ".gif"), (tiff_of, ".tif"))[number % 3]
    yield "bomb", ending, maker(large, large), BAD, "too many pixels"
    yield "bomb", ".png", saved(Image.new("L", (1, large)), "PNG"), BAD, "too long and thin"

    yield "cmyk", ".jpg", saved(picture.convert("CMYK"), "JPEG"), GOOD, ""

    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    format = ("TIFF", "PNG")[number % 2]
    yield "sixteen_bits", f".{format.lower()}", saved(Image.fromarray(grey), format), GOOD, ""
    floats = Image.fromarray(grey.astype(np.float32))
    yield "thirty_two_bits", ".tif", saved(floats, "TIFF"), BAD, "no agreed range"

    yield "palette", ".png", saved(picture.quantize(16), "PNG", transparency=number % 16), GOOD, ""

    format, frames = ("GIF", "PNG", "WEBP")[number % 3], [picture.rotate(90), picture.rotate(180)]
    yield "animated", f".{format.lower()}", saved(picture, format, save_all=True, append_images=frames), GOOD, ""

    exif, noise = Image.Exif(), b"Exif\0\0" + rng.randbytes(40)
    exif[0x0112] = number % 8 + 1
    format = ("PNG", "JPEG")[number % 16 < 8]
    yield "exif_rotation", f".{format.lower()}", saved(picture, format, exif=exif), GOOD, ""
    yield "exif_noise", ".jpg", saved(picture, "JPEG", exif=noise), GOOD, ""

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if number % 2 else b"no profile at all"
    yield "icc_profile", ".jpg", saved(picture, "JPEG", icc_profile=profile), GOOD, ""

    ends = (" with  spaces.jpg", ' it\'s "quoted", `so`.jpg', " two\nlines.jpg", os.fsdecode(b" caf\xe9 \xff.jpg"))
    ends += (" <b>&bold|[x](y).jpg",)
    for place, end in enumerate(ends):
        yield "names", end, saved(picture, "JPEG", quality=90 - 3 * place), GOOD, ""
    yield "names", ends[2 + number % 3], b"strange name, no picture", BAD, "not an image file"


def _irregular(folder: Path) -> list[Strange]:
    """Add links that lead nowhere or in a circle, named pipes and a folder that is named like a picture."""
    (folder / "loop_a.jpg").symlink_to("loop_b.jpg")
    (folder / "loop_b.jpg").symlink_to("loop_a.jpg")
    (folder / "itself").symlink_to(folder)
    (folder / "nowhere.jpg").symlink_to("there is no such file.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.jpg")
    loops = [Strange(f"loop_{letter}.jpg", BAD, "symbolic links") for letter in "ab"]
    others = [Strange(name, BAD, "not a file") for name in ("device.jpg", "pipe.jpg")]
    return [*loops, Strange("nowhere.jpg", BAD, "no such file"), *others]
