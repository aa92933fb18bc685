"""Real files of every kind that people have: right pixels, or one line that names the file and what is wrong."""

from __future__ import annotations

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from shared.examples import BadExampleError
from vision.images import decode_image, oriented, read_image_header, read_image_size
from vision.preprocessing import Preprocessing, decode_and_prepare, prepare_image


def picture(height=48, width=64):
    """A smooth picture without symmetry, so that JPEG keeps it nearly as it is."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (4 * columns % 256, 5 * rows % 256, (columns + rows * 2) % 256)
    return cv2.GaussianBlur(np.stack(channels, -1).astype(np.uint8), (0, 0), 3)


def encoded(format, mode="RGB", image=None, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture() if image is None else image).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


JPEG = encoded("JPEG", quality=95)


def exif_segment(orientation, order=">"):
    tiff = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(order + "I", 8)
    tiff += struct.pack(order + "HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def with_segments(*segments):
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def claiming(width, height):
    """A tiny PNG whose header claims this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def claiming_jpeg(width, height):
    frame = JPEG.index(b"\xff\xc0")
    return JPEG[: frame + 5] + struct.pack(">HH", height, width) + JPEG[frame + 9 :]


# Right pixels.


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels(format):
    image = picture() // 64 * 64 if format == "GIF" else picture()
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(encoded(format, image=image, **options)), image)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_gives_the_pixels_that_pillow_gives(progressive):
    data = encoded("JPEG", quality=90, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert np.abs(decode_image(data) - expected).max() <= 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_grey_becomes_three_equal_channels(format):
    options = {"lossless": True} if format == "WEBP" else {}
    grey = np.asarray(Image.fromarray(picture()).convert("L"))
    decoded = decode_image(encoded(format, "L", **options)).astype(int)
    assert decoded.shape == (48, 64, 3)
    assert (np.ptp(decoded, axis=-1) <= (1 if format == "JPEG" else 0)).all()
    assert np.abs(decoded[..., 0] - grey).max() <= (3 if format == "JPEG" else 0)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_transparent_pixels_are_blended_with_white(format):
    rgba = np.dstack([picture(), np.zeros((48, 64), np.uint8)])
    rgba[:, 32:, 3] = 255
    rgba[:8, :, 3] = 128
    buffer = io.BytesIO()
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    Image.fromarray(rgba).save(buffer, format, **options)
    decoded = decode_image(buffer.getvalue())
    assert (decoded[8:, :32] == 255).all()
    np.testing.assert_array_equal(decoded[8:, 32:], picture()[8:, 32:])
    half = picture()[:8].astype(float) * 128 / 255 + 255 * (127 / 255)
    assert np.abs(decoded[:8] - half).max() <= 1


def test_a_palette_with_a_transparent_colour():
    image = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8)).convert("P")
    image.putdata([0, 1, 1, 2])
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=1)
    assert decode_image(buffer.getvalue()).tolist() == [[[255, 0, 0], [255] * 3], [[255] * 3, [0, 0, 255]]]


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize(("mode", "colours"), [("1", 2), ("P", 2), ("P", 4), ("P", 16), ("P", 200)])
def test_few_colours_in_few_bits(format, mode, colours):
    image = Image.fromarray(picture())
    image = image.quantize(colours) if mode == "P" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format)
    np.testing.assert_array_equal(decode_image(buffer.getvalue()), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_read(format):
    frames = [Image.fromarray(picture() // 64 * 64).rotate(angle) for angle in (0, 90, 180)]
    buffer = io.BytesIO()
    options = {"lossless": True} if format == "WEBP" else {}
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode_image(buffer.getvalue()), np.asarray(frames[0]))


def test_a_bmp_of_os2():
    pixels = np.asarray([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]], np.uint8)
    rows = b"".join(row[:, ::-1].tobytes() + b"\0\0" for row in pixels[::-1])
    data = b"BM" + struct.pack("<IHHIIHHHH", 26 + len(rows), 0, 0, 26, 12, 2, 2, 1, 24) + rows
    np.testing.assert_array_equal(decode_image(data), pixels)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_keep_the_high_byte(suffix):
    deep = np.arange(6 * 5 * 3, dtype=np.uint16).reshape(6, 5, 3) * 700
    data = cv2.imencode(suffix, deep)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data), (deep[..., ::-1] >> 8).astype(np.uint8))


def test_cmyk_is_converted():
    data = encoded("JPEG", "CMYK", image=np.full((16, 16, 3), (200, 60, 30), np.uint8), quality=95)
    assert read_image_header(data).components == 4
    assert np.abs(decode_image(data).astype(int) - (200, 60, 30)).max() <= 6


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, order):
    plain = decode_image(JPEG)
    turned = decode_image(with_segments(exif_segment(orientation, order)))
    transposes = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    expected = Image.fromarray(plain)
    if transposes[orientation] is not None:
        expected = expected.transpose(Image.Transpose(transposes[orientation]))
    np.testing.assert_array_equal(turned, np.asarray(expected))
    np.testing.assert_array_equal(turned, oriented(plain, orientation))


@pytest.mark.parametrize("format", ["TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_of_tiff_and_webp_is_applied(format, orientation):
    if format == "TIFF":
        data = encoded("TIFF", tiffinfo={274: orientation})
    else:
        data = encoded("WEBP", lossless=True, exif=exif_segment(orientation)[4:])
    np.testing.assert_array_equal(decode_image(data), oriented(picture(), orientation))


@pytest.mark.parametrize(("channels", "shape"), [((), (4, 5)), ((1,), (4, 5, 1)), ((3,), (4, 5, 3)), ((4,), (4, 5, 4))])
def test_arrays_are_taken_as_they_are(channels, shape):
    array = np.full(shape, 90, np.uint8)
    if channels == (4,):
        array[..., 3] = 255
    assert (decode_image(array) == np.full((4, 5, 3), 90)).all()


def test_paths_and_bytes_are_the_same(tmp_path):
    path = tmp_path / "ünïcode name.jpg"
    path.write_bytes(JPEG)
    for source in (path, str(path), JPEG):
        np.testing.assert_array_equal(decode_image(source), decode_image(JPEG))


def test_a_suffix_does_not_decide(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded("PNG"))
    np.testing.assert_array_equal(decode_image(path), picture())


@pytest.mark.parametrize(
    ("min_side", "shape"), [(None, (480, 640)), (300, (480, 640)), (240, (240, 320)), (100, (120, 160))]
)
def test_large_jpegs_may_come_smaller(min_side, shape):
    data = encoded("JPEG", image=picture(480, 640))
    decoded = decode_image(data, min_side=min_side)
    assert decoded.shape == (*shape, 3)
    expected = cv2.resize(decode_image(data), shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(decoded.astype(int) - expected).mean() < 3


# Real bad files: one line, with the file's name.


BAD_FILES = {
    "no bytes": (b"", "the file is empty (0 bytes)"),
    "text": (b"This is no picture at all.\n", "not a JPEG, PNG, GIF, BMP, WebP or TIFF image"),
    "JPEG, only its magic": (JPEG[:3], "truncated within its header"),
    "JPEG cut in the header": (JPEG[:100], "truncated within its header"),
    "JPEG cut in the middle": (JPEG[: len(JPEG) // 2], "truncated"),
    "JPEG without its last bytes": (JPEG[:-2], "truncated"),
    "PNG cut in the header": (encoded("PNG")[:20], "truncated within its header"),
    "PNG cut in the middle": (encoded("PNG")[: len(encoded("PNG")) // 2], "truncated or damaged"),
    "GIF cut in the header": (encoded("GIF")[:8], "truncated within its header"),
    "GIF cut in the middle": (encoded("GIF")[:900], "truncated or damaged"),
    "BMP cut in the middle": (encoded("BMP")[:900], "truncated or damaged"),
    "WebP cut in the middle": (encoded("WEBP")[:200], "truncated or damaged"),
    "TIFF cut in the header": (encoded("TIFF")[:6], "truncated"),
    "PNG of 60,000 x 60,000": (claiming(60_000, 60_000), "claims 60000x60000 pixels, more than the 178956970 allowed"),
    "JPEG of 65,000 x 65,000": (claiming_jpeg(65_000, 65_000), "claims 65000x65000 pixels, more than"),
    "PNG of 0 x 10": (claiming(0, 10), "claims 0x10 pixels"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_in_one_line(name, tmp_path):
    data, words = BAD_FILES[name]
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    with pytest.raises(BadExampleError) as caught:
        decode_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadExampleError, match=r"^image bytes: "):
        decode_image(data)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP"])
def test_no_truncated_file_passes_for_whole(format, cut):
    data = encoded(format)
    with pytest.raises(BadExampleError):
        decode_image(data[: int(len(data) * cut)])


def damaged_files(data, rng, count=30):
    """Copies of `data` with a few wrong bytes, most of them in the header; each third cut off somewhere."""
    for number in range(count):
        damaged = bytearray(data)
        reach = len(data) if number % 2 else min(len(data), 120)
        for position in rng.integers(0, reach, 4):
            damaged[position] = rng.integers(256)
        yield bytes(damaged if number % 3 else damaged[: rng.integers(1, len(data))])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_damage_of_any_kind_gives_pixels_or_the_one_error(format):
    outcomes = [decoded_or_refused(data) for data in damaged_files(encoded(format), np.random.default_rng(7))]
    assert "refused" in outcomes
    assert all(outcome in ("refused", (np.uint8, 3, 3)) for outcome in outcomes)


def decoded_or_refused(data):
    try:
        pixels = decode_image(data, max_pixels=10**6)
    except BadExampleError:
        return "refused"
    return pixels.dtype, pixels.ndim, pixels.shape[-1]


def test_a_bomb_costs_nothing():
    with pytest.raises(BadExampleError, match="more than the 100 allowed"):
        decode_image(JPEG, max_pixels=100)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path / "missing.jpg", "no such file"),
        (lambda path: path, "is a directory"),
        (lambda path: path / ("x" * 300), "cannot be read"),
    ],
)
def test_paths_that_are_no_files(tmp_path, make, words):
    path = make(tmp_path)
    with pytest.raises(BadExampleError) as caught:
        decode_image(path)
    assert str(caught.value).startswith(f"{path}: {words}")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "private.jpg"
    path.write_bytes(JPEG)
    path.chmod(0)
    if os.geteuid() == 0:
        # The superuser may read everything: the system's refusal is played.
        def refuse(self):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(BadExampleError, match=r"private.jpg: no permission to read it"):
        decode_image(path)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (3, TypeError, "a path, bytes or a uint8 array; received int"),
        (None, TypeError, "received NoneType"),
        (np.zeros((4, 4, 3), np.float32), TypeError, "must be uint8 with values 0..255; received float32"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"received \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"received \(0, 4, 3\)"),
        (np.zeros(4, np.uint8), ValueError, r"received \(4,\)"),
    ],
)
def test_other_things_are_refused(source, error, words):
    with pytest.raises(error, match=words):
        decode_image(source)


# The graph twin that exports contain.


def filler(size):
    return b"\xff\xe2" + struct.pack(">H", size) + b"\0" * (size - 2)


TWINS = {
    "JPEG": JPEG,
    "progressive JPEG": encoded("JPEG", progressive=True),
    "grey JPEG": encoded("JPEG", "L"),
    "PNG": encoded("PNG"),
    "grey PNG": encoded("PNG", "L"),
    "RGBA PNG": encoded("PNG", "RGBA"),
    "palette PNG": encoded("PNG", "P"),
    "PNG of 1 bit": encoded("PNG", "1"),
    "GIF": encoded("GIF"),
    "BMP": encoded("BMP"),
    "grey BMP": encoded("BMP", "L"),
    "palette BMP": encoded("BMP", "P"),
    "RGBA BMP": encoded("BMP", "RGBA"),
    **{f"EXIF {n}": with_segments(exif_segment(n, "<>"[n % 2])) for n in range(1, 9)},
    "EXIF after fill bytes": with_segments(b"\xff\xff\xff", exif_segment(6)),
    "EXIF after a restart marker": with_segments(b"\xff\xd0", exif_segment(6)),
    "the first of two EXIF segments": with_segments(exif_segment(6), exif_segment(3)),
    "EXIF after other segments": with_segments(filler(5000), filler(300), exif_segment(8)),
    "EXIF out of reach": with_segments(*[filler(65000)] * 5, exif_segment(8)),
    "EXIF of a wrong value": with_segments(exif_segment(77)),
    "EXIF cut off": with_segments(b"\xff\xe1\x00\x0eExif\0\0MM\0*\0\0"),
}


@pytest.fixture(scope="module")
def twin():
    preprocessing = Preprocessing(image_size=32)
    signature = [tf.TensorSpec((), tf.string)]
    return preprocessing, tf.function(lambda data: decode_and_prepare(data, preprocessing), input_signature=signature)


@pytest.mark.parametrize("name", TWINS)
def test_the_graph_gives_the_same_pixels(name, twin):
    preprocessing, graph = twin
    expected = prepare_image(decode_image(TWINS[name]), preprocessing)
    np.testing.assert_array_equal(graph(TWINS[name]).numpy(), expected)


@pytest.mark.parametrize("name", TWINS)
def test_the_size_is_that_of_the_decoded_image(name, tmp_path):
    (tmp_path / "image").write_bytes(TWINS[name])
    height, width, _ = decode_image(TWINS[name]).shape
    assert read_image_size(tmp_path / "image") == (width, height)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_tiff_and_webp_too(orientation, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (160, 200, 3)).astype(np.uint8)
    # More than the 64 kB that are looked at first; the orientation of a WebP image stands at its end.
    webp = encoded("WEBP", image=noise, lossless=True, exif=exif_segment(orientation)[4:])
    tiff = encoded("TIFF", image=noise, tiffinfo={274: orientation})
    for data in (webp, tiff):
        (tmp_path / "image").write_bytes(data)
        height, width, _ = decode_image(data).shape
        assert read_image_size(str(tmp_path / "image")) == (width, height)


def test_sizes_that_cannot_be_read_name_the_file(tmp_path):
    for data, words in [
        (b"", r"the file is empty"),
        (b"hello", "not a JPEG"),
        (JPEG[:30], "truncated within its header"),
    ]:
        (tmp_path / "a.jpg").write_bytes(data)
        with pytest.raises(BadExampleError, match=rf"a\.jpg: .*{words}"):
            read_image_size(tmp_path / "a.jpg")
    with pytest.raises(BadExampleError, match=r"gone\.jpg: cannot be read \(No such file"):
        read_image_size(tmp_path / "gone.jpg")


def test_exif_after_fill_bytes_is_found_at_all():
    assert read_image_header(TWINS["EXIF after fill bytes"]).orientation == 6
    assert read_image_header(TWINS["the first of two EXIF segments"]).orientation == 6
    assert read_image_header(TWINS["EXIF out of reach"]).orientation == 1


@pytest.mark.parametrize("data", [b"", b"RIFF....WEBPVP8 ", b"II*\0", b"hello"])
def test_the_graph_says_what_it_reads(data, twin):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Expected the bytes of a JPEG, PNG, GIF or BMP file"):
        twin[1](data)
