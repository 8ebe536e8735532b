"""Inputs that have broken other programs, by name: images, texts, embeddings and labels.

`EXPECTED` says what reading each of `HOSTILE_IMAGES` must come to: an "image", an "error", or "either" where decoders
may rightly differ. Never anything else: no other exception, no hang, no unbounded memory.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import unicodedata
import zipfile
import zlib

import numpy as np

from tests import pictures

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_MAGIC_LENGTHS = {"JPEG": 3, "PNG": 8, "WEBP": 16, "GIF": 6, "BMP": 30, "TIFF": 4, "AVIF": 32}
_GREY = {256: (4, (10,)), 257: (4, (10,)), 258: (3, (8,)), 259: (3, (1,)), 262: (3, (1,)), 277: (3, (1,))}


def _random(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def _flipped(data: bytes, start: int, end: int, every: int = 7) -> bytes:
    flipped = bytearray(data)
    for position in range(start, min(end, len(data)), every):
        flipped[position] ^= 0x55
    return bytes(flipped)


def _patched(data: bytes, position: int, content: bytes) -> bytes:
    return data[:position] + content + data[position + len(content) :]


def _of_each_format() -> dict[str, tuple[str, bytes]]:
    found = {}
    for image_format in _FORMATS:
        good = pictures.picture_file(image_format)
        name, size, magic = image_format.lower(), len(good), _MAGIC_LENGTHS[image_format]
        # A bitmap's pixels are raw; in the coded formats a wrong byte may or may not be noticed.
        found[f"{name}_only_the_magic"] = ("error", good[:magic])
        found[f"{name}_truncated_in_header"] = ("error", good[: magic + 5])
        found[f"{name}_truncated_in_middle"] = ("error", good[: size // 2])
        found[f"{name}_last_byte_missing"] = ("either", good[:-1])
        found[f"{name}_flipped_in_header"] = ("either", _flipped(good, magic, magic + 40))
        found[f"{name}_flipped_in_pixels"] = ("either", _flipped(good, size // 2, size, 13))
        found[f"{name}_random_after_magic"] = ("error", good[:magic] + _random(2000))
        found[f"{name}_zeros_after_magic"] = ("error", good[:magic] + bytes(2000))
        tolerant = image_format in ("JPEG", "PNG", "GIF", "BMP", "TIFF")
        found[f"{name}_garbage_at_end"] = ("image" if tolerant else "either", good + _random(1000))
    return found


def _png() -> dict[str, tuple[str, bytes]]:
    good = pictures.png()
    chunk, raw_png = pictures.png_chunk, pictures.raw_png
    rows = bytes(10 * 11)
    # 900 megapixels of one colour in 110 kB: the same block, compressed once, 100 times over.
    block = zlib.compressobj(9, zlib.DEFLATED, -15)
    hundredth = block.compress(bytes(300 * 3751)) + block.flush(zlib.Z_FULL_FLUSH)
    adler = 1
    for _ in range(100):
        adler = zlib.adler32(bytes(300 * 3751), adler)
    stream = b"\x78\x9c" + hundredth * 100 + b"\x03\x00" + struct.pack(">I", adler)
    bomb = good[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)) + chunk(b"IDAT", stream)
    text = b"Comment\0\0" + zlib.compress(bytes(50_000_000), 1)
    profile = b"icc\0\0" + zlib.compress(bytes(50_000_000), 1)
    animated = pictures.animation("PNG")
    later = animated.rfind(b"fdAT")
    return {
        "png_wrong_header_crc": ("error", _patched(good, 29, b"\0\0\0\0")),
        "png_wrong_pixels_crc": ("either", _patched(good, len(good) - 16, b"\0\0\0\0")),
        "png_zero_width": ("error", raw_png(0, 10, 8, 0, rows)),
        "png_zero_height": ("error", raw_png(10, 0, 8, 0, rows)),
        "png_two_billion_wide": ("error", raw_png(2**31 - 1, 1, 8, 0, rows)),
        "png_two_billion_squared": ("error", raw_png(2**31 - 1, 2**31 - 1, 8, 2, rows)),
        "png_four_billion_high": ("error", raw_png(10, 2**32 - 1, 8, 0, rows)),
        "png_bomb_900_megapixels": ("error", bomb + chunk(b"IEND")),
        "png_text_bomb": ("either", raw_png(10, 10, 8, 0, rows, before=chunk(b"zTXt", text))),
        "png_profile_bomb": ("either", raw_png(10, 10, 8, 0, rows, before=chunk(b"iCCP", profile))),
        "png_depth_3": ("error", raw_png(10, 10, 3, 0, rows)),
        "png_colour_type_5": ("error", raw_png(10, 10, 8, 5, rows)),
        "png_without_pixels": ("error", raw_png(10, 10, 8, 0, b"")),
        "png_too_few_pixels": ("error", raw_png(10, 10, 8, 0, rows[:50])),
        "png_too_many_pixels": ("either", raw_png(10, 10, 8, 0, rows * 1000)),
        "png_filter_200": ("either", raw_png(10, 10, 8, 0, b"\xc8" * 110)),
        "png_palette_missing": ("either", raw_png(10, 10, 8, 3, rows)),
        "png_palette_too_short": (
            "either",
            raw_png(10, 10, 8, 3, b"\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" * 10, chunk(b"PLTE", b"abc")),
        ),
        "png_palette_of_5_bytes": ("either", raw_png(10, 10, 8, 3, rows, chunk(b"PLTE", b"abcde"))),
        "png_transparency_too_short": ("either", raw_png(10, 10, 8, 0, rows, chunk(b"tRNS", b"\0"))),
        "png_broken_exif": ("image", raw_png(10, 10, 8, 0, rows, chunk(b"eXIf", b"II*\0" + b"\xff" * 50))),
        "png_chunk_of_two_gigabytes": ("either", good[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + good[41:]),
        "png_of_60000_chunks": ("error", raw_png(10, 10, 8, 0, rows, before=chunk(b"prVt") * 60_000)),
        "png_of_60000_empty_pixel_chunks": ("error", raw_png(10, 10, 8, 0, rows, before=chunk(b"IDAT") * 60_000)),
        "png_animated_later_frame_corrupt": ("either", _flipped(animated, later + 20, later + 400, 3)),
    }


def _jpeg() -> dict[str, tuple[str, bytes]]:
    good = pictures.jpeg()
    frame = good.find(b"\xff\xc0")

    def with_exif(exif: bytes) -> bytes:
        return good[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif + good[2:]

    entry = struct.Struct("<HHII")
    cyclic = (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", 2)
        + entry.pack(0x8769, 4, 1, 8)
        + entry.pack(0x8825, 4, 1, 8)
        + b"\x08\0\0\0"
    )
    nine = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry.pack(0x0112, 3, 1, 9) + bytes(4)
    overlapping = b"".join(entry.pack(tag, 7, 50_000, 8) for tag in range(1000, 1400))
    bomb = b"II*\0\x08\0\0\0" + struct.pack("<H", 400) + overlapping + bytes(50_100)
    progressive = pictures.encode(pictures.scene().convert("L"), "JPEG", progressive=True)
    last_scan = progressive.rfind(b"\xff\xda")
    return {
        "jpeg_65500_x_65500_header": ("error", _patched(good, frame + 5, struct.pack(">HH", 65500, 65500))),
        "jpeg_zero_height": ("error", _patched(good, frame + 5, struct.pack(">HH", 0, 64))),
        "jpeg_zero_width": ("error", _patched(good, frame + 5, struct.pack(">HH", 48, 0))),
        "jpeg_larger_than_its_pixels": ("either", _patched(good, frame + 5, struct.pack(">HH", 2000, 2000))),
        "jpeg_broken_exif": ("image", with_exif(b"II*\0\x08\0\0\0" + b"\xff" * 200)),
        "jpeg_exif_of_nothing": ("image", with_exif(b"")),
        "jpeg_exif_of_garbage": ("image", with_exif(_random(500))),
        "jpeg_exif_cyclic": ("image", with_exif(cyclic)),
        "jpeg_exif_orientation_9": ("image", with_exif(nine)),
        "jpeg_exif_tags_all_over_each_other": ("image", with_exif(bomb)),
        "jpeg_3000_scans": ("error", progressive[:last_scan] + progressive[last_scan:-2] * 3000 + b"\xff\xd9"),
        "jpeg_without_tables": ("error", good[: good.find(b"\xff\xdb")] + good[frame:]),
        "jpeg_segment_longer_than_file": ("error", good[:2] + b"\xff\xe0\xff\xff" + good[6:100]),
        "jpeg_of_markers_only": ("error", b"\xff\xd8\xff" + b"\xd8\xff" * 5000),
        "jpeg_of_fill_bytes": ("error", b"\xff\xd8\xff\xe0\0\2" + b"\xff" * 10000),
        "jpeg_of_60000_segments": ("error", good[:2] + b"\xff\xe5\0\2" * 60_000 + good[2:]),
        "jpeg_of_60000_tables": ("error", good[:2] + b"\xff\xdb\0\2" * 60_000 + good[2:]),
        "jpeg_of_60000_restarts": ("error", good[:2] + b"\xff\xe5\0\2" + b"\xff\xd0" * 60_000 + good[2:]),
        "jpeg_then_zip": ("image", good + _zip()),
        "jpeg_then_html": ("image", good + b"<html><script>alert(1)</script></html>"),
    }


def _tiff() -> dict[str, tuple[str, bytes]]:
    raw_tiff, pixels = pictures.raw_tiff, bytes(range(100))
    good = raw_tiff(_GREY, pixels)
    entry = struct.Struct("<HHII")
    count_at = 8 + 2 + 12 * 0 + 4  # of the first entry
    overlapping = b"".join(entry.pack(tag, 7, 100_000, 8) for tag in range(1000, 1400))
    many = {**_GREY, 322: (4, (1,)), 323: (4, (1,)), 324: (4, (8,) * 250_000)}
    huge = {322: (4, (60000,)), 323: (4, (60000,)), 324: (4, (8,)), 325: (4, (100,)), 259: (3, (8,))}
    return {
        "tiff_directory_follows_itself": ("image", raw_tiff(_GREY, pixels, next_directory=8)),
        "tiff_directory_in_its_header": ("error", b"II*\0\0\0\0\0" + good[8:]),
        "tiff_directory_beyond_end": ("error", b"II*\0\xff\xff\xff\x7f" + good[8:]),
        "tiff_65535_entries": ("either", _patched(good, 8, b"\xff\xff")),
        "tiff_width_of_a_billion_values": ("either", _patched(good, count_at, struct.pack("<I", 10**9))),
        "tiff_tags_all_over_each_other": (
            "error",
            b"II*\0\x08\0\0\0" + struct.pack("<H", 400) + overlapping + bytes(100_100),
        ),
        "tiff_in_250000_pieces": ("error", raw_tiff(many)),
        "tiff_tile_of_3600_megapixels": ("error", raw_tiff({**_GREY, **huge})),
        "tiff_zero_size": ("error", raw_tiff({**_GREY, 256: (4, (0,))}, pixels)),
        "tiff_4_billion_wide": ("error", raw_tiff({**_GREY, 256: (4, (2**32 - 1,))}, pixels)),
        "tiff_900_megapixels": ("error", raw_tiff({**_GREY, 256: (4, (30000,)), 257: (4, (30000,))}, pixels)),
        "tiff_60000_samples": ("error", raw_tiff({**_GREY, 277: (3, (60000,))}, pixels)),
        "tiff_unknown_compression": ("error", raw_tiff({**_GREY, 259: (3, (12345,))}, pixels)),
        "tiff_compressed_garbage": ("error", raw_tiff({**_GREY, 259: (3, (8,))}, pixels)),
        "tiff_lzw_garbage": ("either", raw_tiff({**_GREY, 259: (3, (5,))}, pixels)),
        "tiff_fax_garbage": ("either", raw_tiff({**_GREY, 258: (3, (1,)), 259: (3, (4,))}, pixels)),
        "tiff_pixels_beyond_end": ("error", good[:-60]),
        "tiff_big_with_endless_directory": ("error", b"II+\0\x08\0\0\0\x10" + bytes(7) + b"\xff" * 4000),
    }


def _other_images() -> dict[str, tuple[str, bytes]]:
    gif, webp, bmp = (pictures.picture_file(name) for name in ("GIF", "WEBP", "BMP"))
    animated_gif, animated_webp = pictures.animation("GIF"), pictures.animation("WEBP")
    later = animated_webp.rfind(b"ANMF")
    canvas = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x10\0\0\0"
    rle = struct.pack("<IiiHHIIiiII", 40, 30000, 3300, 1, 8, 1, 4, 0, 0, 256, 0) + bytes(1024) + b"\0\0\0\1"
    return {
        "gif_huge_screen": ("error", _patched(gif, 6, b"\xff\xff\xff\xff")),
        "gif_zero_screen": ("either", _patched(gif, 6, b"\0\0\0\0")),
        "gif_frame_beyond_screen": ("either", _patched(gif, 6, b"\x08\0\x08\0")),
        "gif_without_frames": ("error", gif[:13] + b";"),
        "gif_animated_later_frame_corrupt": (
            "image",
            _flipped(animated_gif, len(animated_gif) - 300, len(animated_gif)),
        ),
        "gif_animated_later_frame_truncated": ("image", animated_gif[:-500]),
        "gif_and_javascript": ("either", b"GIF89a/*" + gif[8:] + b"*/=1;alert(1)"),
        "webp_longer_than_file": ("error", _patched(webp, 4, struct.pack("<I", len(webp) + 1000))),
        "webp_shorter_than_file": ("either", _patched(webp, 4, struct.pack("<I", len(webp) // 2))),
        "webp_riff_length_zero": ("either", _patched(webp, 4, bytes(4))),
        "webp_canvas_of_281_terapixels": ("error", canvas + b"\xff" * 6),
        "webp_canvas_16000_x_16000": ("error", canvas + b"\x7f\x3e\0" * 2),
        "webp_animated_later_frame_corrupt": ("either", _flipped(animated_webp, later + 40, later + 400, 3)),
        "webp_animated_truncated": ("error", animated_webp[: later + 100]),
        "bmp_zero_size": ("error", _patched(bmp, 18, bytes(8))),
        "bmp_two_billion_wide": ("error", _patched(bmp, 18, struct.pack("<i", 2**31 - 1))),
        "bmp_negative_width": ("error", _patched(bmp, 18, struct.pack("<i", -64))),
        "bmp_4_billion_colours": ("either", _patched(bmp, 46, b"\xff" * 4)),
        "bmp_pixels_beyond_end": ("error", _patched(bmp, 10, b"\xff\xff\xff\x7f")),
        "bmp_run_length_99_megapixels": ("error", b"BM" + struct.pack("<IHHI", 1082, 0, 0, 1078) + rle),
        "strip_1_x_100000": ("error", pictures.encode(pictures.scene(1, 10).resize((1, 100_000)), "PNG")),
        "strip_100000_x_1": ("error", pictures.encode(pictures.scene(10, 1).resize((100_000, 1)), "PNG")),
        "strip_1_x_150": ("image", pictures.png(1, 150)),
        "pixel_1_x_1": ("image", pictures.png(1, 1)),
        "heif_only_its_brand": ("error", b"\0\0\0\x18ftypheic\0\0\0\0heicmif1"),
        "heif_random": ("error", b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + _random(1000)),
    }


def _no_images() -> dict[str, tuple[str, bytes]]:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><rect width="9" height="9"/></svg>'
    found = {
        "empty": b"",
        "one_byte": b"\xff",
        "one_zero": b"\0",
        "two_bytes": b"BM",
        "zeros": bytes(4096),
        "ones": b"\xff" * 4096,
        "random": _random(4096),
        "random_100_kB": _random(100_000, 1),
        "text": b"purple and gold",
        "text_that_starts_like_a_bitmap": b"BMW builds cars, and this is no bitmap at all, "
        b"whatever its first letters say.",
        "text_in_utf_16": "purple and gold".encode("utf-16"),
        "base64_of_an_image": base64.b64encode(pictures.png(1, 1)),
        "json": b'{"image": null}',
        "svg": svg,
        "svg_with_prolog": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- drawn by hand -->\n' + svg,
        "svg_in_utf_16": svg.decode().encode("utf-16"),
        "svg_billion_laughs": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + svg,
        "html": b"<!DOCTYPE html><html><body><svg></svg>404 Not Found</body></html>",
        "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(/etc/passwd) (r) file\nshowpage\n",
        "postscript_with_preview": b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "photoshop": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x0a\0\0\0\x0a\0\x08\0\3" + bytes(50),
        "icon": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\x68\4\0\0\x16\0\0\0" + bytes(100),
        "fits": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "zip": _zip(),
        "gzip": b"\x1f\x8b\x08\0" + bytes(20),
        "video": b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(100),
        "jpeg_xl": b"\xff\x0a" + bytes(100),
        "jpeg_2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
        "sqlite_database": b"SQLite format 3\0" + bytes(100),
        "elf_program": b"\x7fELF\2\1\1" + bytes(100),
        "pickle": b"\x80\4\x95\x1f\0\0\0\0\0\0\0\x8c\5posix\x94\x8c\6system\x94\x93\x94\x8c\4true\x94\x85\x94R\x94.",
    }
    return {name: ("error", data) for name, data in found.items()}


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("image.png"), pictures.png(4, 4))
    return file.getvalue()


_IMAGES = {**_of_each_format(), **_png(), **_jpeg(), **_tiff(), **_other_images(), **_no_images()}

HOSTILE_IMAGES: dict[str, bytes] = {name: data for name, (_, data) in _IMAGES.items()}
EXPECTED: dict[str, str] = {name: expected for name, (expected, _) in _IMAGES.items()}

HOSTILE_TEXTS: dict[str, str] = {
    "empty": "",
    "spaces": "    ",
    "white_space": " \t\r\n\v\f\u00a0\u2003\u3000\ufeff",
    "zero": "\0",
    "zero_inside": "purple\0gold",
    "control_characters": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "lone_high_surrogate": "purple \ud83d gold",
    "lone_low_surrogate": "purple \ude00 gold",
    "surrogates_reversed": "\ude00\ud83d",
    "one_letter_a_million_times": "a" * 1_000_000,
    "megabyte_of_emoji": "\U0001f600" * 250_000,
    "one_word_of_100000_letters": "donaudampfschifffahrt"[:20] * 5_000,
    "100000_words": "word " * 100_000,
    "100000_newlines": "\n" * 100_000,
    "right_to_left": "\u202e\u0633\u0644\u0627\u0645 \u05d3\u05d5\u05d3\u202c\u200f abc",
    "zalgo": "".join(letter + "\u0300\u0301\u0302\u0303\u0489" * 20 for letter in "purple"),
    "combining_only": "\u0301" * 1000,
    "composed": unicodedata.normalize("NFC", "Ångström café 각"),
    "decomposed": unicodedata.normalize("NFD", "Ångström café 각"),
    "astral": "\U00020000\U0001d54f\U0010ffff",
    "joined_emoji": "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈" * 100,
    "noncharacters": "\ufffe\uffff\ufffd",
    "private_use": "\ue000\uf8ff",
    "special_tokens": "<|startoftext|>cat<|endoftext|>dog</s><s>[CLS][PAD]<unk>",
    "data_uri_of_nothing": "data:image/png;base64,",
    "data_uri_broken": "data:image/png;base64,@@@@",
    "data_uri_without_comma": "data:image/png;base64",
    "like_json": '{"label": ["cat", null]}',
    "like_sql": "'; drop table emoji; --",
    "like_a_number": "1e999",
    "format_specifiers": "%s %n {} {0.__class__} ${HOME}",
    "full_width": "\uff30\uff35\uff32\uff30\uff2c\uff25\u3000\uff41\uff4e\uff44\u3000\uff47\uff4f\uff4c\uff44",
    "turkish_case": "\u0130I\u0131i \u00df \ufb00 \u01c5",
}


def HOSTILE_EMBEDDINGS(dimensions: int) -> dict[str, bytes]:
    """BLOBs that are not, or not quite, an embedding of `dimensions` float32 values."""
    good = np.random.default_rng(0).standard_normal(dimensions).astype("<f4")
    good /= np.linalg.norm(good)

    def with_first(value: float) -> bytes:
        changed = good.copy()
        changed[0] = value
        return changed.tobytes()

    def filled(value: float) -> bytes:
        return np.full(dimensions, value, "<f4").tobytes()

    return {
        "empty": b"",
        "one_byte": b"\0",
        "one_byte_less": good.tobytes()[:-1],
        "one_byte_more": good.tobytes() + b"\0",
        "one_value_less": good.tobytes()[:-4],
        "one_value_more": good.tobytes() + bytes(4),
        "one_value": good.tobytes()[:4],
        "twice": good.tobytes() * 2,
        "a_million_values": bytes(4_000_000),
        "nan": with_first(float("nan")),
        "all_nan": filled(float("nan")),
        "signalling_nan": b"\1\0\x80\x7f" + good.tobytes()[4:],
        "infinite": with_first(float("inf")),
        "minus_infinite": with_first(float("-inf")),
        "all_infinite": filled(float("inf")),
        "zero": bytes(4 * dimensions),
        "minus_zero": filled(-0.0),
        "overflows_when_squared": filled(1e30),
        "largest": filled(float(np.finfo(np.float32).max)),
        "one_largest": with_first(float(np.finfo(np.float32).max)),
        "underflows_when_squared": filled(1e-30),
        "smallest_normal": filled(float(np.finfo(np.float32).tiny)),
        "denormal": filled(1e-45),
        "big_endian": good.astype(">f4").tobytes(),
        "float64": good.astype("<f8").tobytes(),
        "float16": good.astype("<f2").tobytes(),
        "random": _random(4 * dimensions),
        "all_ones_bits": b"\xff" * 4 * dimensions,
        "json_text": json.dumps(good.tolist()).encode(),
        "numpy_file": b"\x93NUMPY\1\0v\0{'descr': '<f4'}".ljust(4 * dimensions, b" "),
    }


def _labels(**settings: object) -> str:
    return json.dumps({"labels": ["cat", "dog"], **settings})


HOSTILE_LABELS: dict[str, str] = {
    "empty_text": "",
    "not_json": "cat, dog",
    "half_json": '["cat", "dog"',
    "json_then_more": '["cat"] ["dog"]',
    "single_quotes": "['cat', 'dog']",
    "null": "null",
    "true": "true",
    "number": "42",
    "nan": "NaN",
    "huge_integer": "9" * 5000,
    "string": '"cat"',
    "empty_array": "[]",
    "empty_object": "{}",
    "empty_label": '["cat", ""]',
    "blank_label": '["cat", "  "]',
    "duplicates": '["cat", "dog", "cat"]',
    "ten_thousand_labels": json.dumps([f"label {index}" for index in range(10_000)]),
    "nested_arrays": '[["cat", "dog"]]',
    "numbers": "[1, 2, 3]",
    "null_inside": '["cat", null]',
    "booleans": "[true, false]",
    "mixed": '["cat", {"label": "dog", "prompt": "a dog"}, 3]',
    "object_without_label": '[{"prompt": "a photo of a cat"}]',
    "object_without_prompt": '[{"label": "cat"}]',
    "label_of_a_number": '[{"label": 1, "prompt": "one"}]',
    "object_with_unknown_key": '[{"label": "cat", "prompt": "a cat", "weight": 2}]',
    "without_labels": '{"template": "a photo of a {}"}',
    "labels_null": '{"labels": null}',
    "labels_string": '{"labels": "cat"}',
    "labels_object": '{"labels": {"cat": "a cat"}}',
    "unknown_key": _labels(tempature=2),
    "duplicate_key": '{"labels": ["cat"], "labels": ["dog"]}',
    "template_without_place": _labels(template="a photo"),
    "template_two_places": _labels(template="a {} and a {}"),
    "template_attribute": _labels(template="{0.__class__}"),
    "template_attribute_deep": _labels(template="{0.__class__.__mro__[1].__subclasses__}"),
    "template_named": _labels(template="a {label}"),
    "template_wide": _labels(template="{:>1000000000}"),
    "template_conversion": _labels(template="{!r}"),
    "template_unclosed": _labels(template="a {"),
    "template_reversed": _labels(template="}{"),
    "template_escaped": _labels(template="a {{}}"),
    "template_number": _labels(template=3),
    "template_empty": _labels(template=""),
    "temperature_zero": _labels(temperature=0),
    "temperature_negative": _labels(temperature=-1),
    "temperature_nan": '{"labels": ["cat"], "temperature": NaN}',
    "temperature_infinite": '{"labels": ["cat"], "temperature": Infinity}',
    "temperature_huge": '{"labels": ["cat"], "temperature": 1e999}',
    "temperature_tiny": _labels(temperature=5e-324),
    "temperature_text": _labels(temperature="hot"),
    "temperature_true": _labels(temperature=True),
    "multi_label_text": _labels(multi_label="yes"),
    "multi_label_number": _labels(multi_label=1),
    "deeply_nested": "[" * 100_000,
    "deeply_nested_and_closed": "[" * 50_000 + "]" * 50_000,
    "deeply_nested_objects": '{"labels":' * 50_000,
    "label_of_5_megabytes": json.dumps(["cat", "x" * 5_000_000]),
    "lone_surrogate": '["cat", "\\ud83d"]',
    "zero_inside": '["cat", "do\\u0000g"]',
    "byte_order_mark": '\ufeff["cat", "dog"]',
}
