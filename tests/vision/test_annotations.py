from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest

from shared.examples import BadExampleError, Examples
from vision.annotations import (
    IGNORED,
    AnnotatedImages,
    MaskCoding,
    MaskFile,
    ObjectBoxes,
    RawBox,
    clean_boxes,
    png_colours,
    png_values,
)

# Boxes.


@pytest.mark.parametrize("none", [[], np.zeros((0, 4)), ()])
def test_an_image_may_have_no_objects(none):
    objects = ObjectBoxes(none, ())
    assert (objects.boxes.shape, objects.boxes.dtype, objects.labels) == ((0, 4), np.float32, ())
    assert (objects.crowd.shape, objects.crowd.dtype) == ((0,), bool)
    cleaned = clean_boxes(objects, 10, 10, [])
    assert (len(cleaned.objects), cleaned.dropped, cleaned.clipped) == (0, (), ())


def test_objects_are_float32_with_names_and_no_crowd_unless_said():
    objects = ObjectBoxes([[1, 2, 3, 4], [5, 6, 7, 8]], ["cat", "dog"])
    assert objects.boxes.dtype == np.float32
    assert objects.labels == ("cat", "dog")
    assert objects.crowd.tolist() == [False, False]
    taken = ObjectBoxes(objects.boxes, objects.labels, [False, True]).take(np.array([False, True]))
    assert (taken.boxes.tolist(), taken.labels, taken.crowd.tolist()) == ([[5, 6, 7, 8]], ("dog",), [True])


def test_objects_keep_a_copy():
    boxes = np.zeros((1, 4), np.float32)
    objects = ObjectBoxes(boxes, ("cat",))
    boxes[:] = 9
    assert objects.boxes.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("boxes", "labels", "crowd", "error", "words"),
    [
        ([[1, 2, 3, 4, 0.5]], ["a"], [False], ValueError, r"shape \(N, 4\) in xyxy order; received \(1, 5\)"),
        ([1, 2, 3, 4], ["a"], [False], ValueError, r"received \(4,\)"),
        (np.zeros((0, 5)), [], [], ValueError, r"received \(0, 5\)"),
        ([[1, 2, 3], [1, 2, 3, 4]], ["a", "b"], [False] * 2, ValueError, "must be numbers of shape"),
        ([[1, 2, 3, 4], [1, np.nan, 3, 4]], ["a", "b"], [False] * 2, ValueError, r"finite; box 1 is \[1.0, nan"),
        ([[1, 2, 3, np.inf]], ["a"], [False], ValueError, "finite; box 0"),
        ([[1, 2, 3, 4]], [], [False], ValueError, "received 1 boxes, 0 labels"),
        ([[1, 2, 3, 4]], ["a"], [False, True], ValueError, r"crowd of shape \(2,\)"),
        ([[1, 2, 3, 4]], ["a"], [1], TypeError, "`crowd` must be bool; received int64"),
        ([[1, 2, 3, 4]], [7], [False], TypeError, r"class names \(str\); received 7 \(int\)"),
        ([[1, 2, 3, 4]], "a", [False], TypeError, "received one string, 'a'"),
    ],
)
def test_objects_that_are_refused(boxes, labels, crowd, error, words):
    with pytest.raises(error, match=words):
        ObjectBoxes(boxes, labels, crowd)


def test_each_dropped_or_clipped_box_is_reported():
    rows = [[1, 1, 5, 5], [-0.4, 0, 5, 10.4], [7, 7, 14, 9], [20, 1, 30, 5], [3, 3, 3, 6]]
    objects = ObjectBoxes(rows, list("abcde"), [False, False, True, False, False])
    cleaned = clean_boxes(objects, 10, 10, [f"file:{line}" for line in range(1, 6)])
    assert cleaned.objects.boxes.tolist() == [[1, 1, 5, 5], [0, 0, 5, 10], [7, 7, 10, 9]]
    assert (cleaned.objects.labels, cleaned.objects.crowd.tolist()) == (("a", "b", "c"), [False, False, True])
    assert [str(bad) for bad in cleaned.dropped] == [
        "file:4: box (20, 1, 30, 5) lies outside the image of 10x10 pixels",
        "file:5: box (3, 3, 3, 6) has no area in the image of 10x10 pixels",
    ]
    # Box b overruns by less than half a pixel, which is rounding.
    assert [str(bad) for bad in cleaned.clipped] == [
        "file:3: box (7, 7, 14, 9) overruns the image of 10x10 pixels by 4; clipped"
    ]


# Images with boxes.


def found(*boxes_of_images, bad=()):
    images = AnnotatedImages()
    for number, boxes in enumerate(boxes_of_images):
        raw = [RawBox(f"list:{line}", "cat", box) for line, box in enumerate(boxes, start=1)]
        images.add(f"{number}.jpg", (10, 10), raw, bad)
    return images


GOOD, OUTSIDE, OVER = (1, 1, 5, 5), (20, 1, 30, 5), (5, 5, 15, 9)


def test_an_image_keeps_its_good_boxes(tmp_path, caplog):
    examples = found([GOOD, OUTSIDE, OVER], []).examples(tmp_path, 0.01)
    assert isinstance(examples, Examples)
    assert list(examples.inputs) == ["0.jpg", "1.jpg"]
    assert [len(objects) for objects in examples.targets] == [2, 0]
    assert [bad.where for bad in examples.bad_records] == ["list:2", "list:3"]
    assert "1 of 3 boxes cannot be used, the first: list:2: box (20, 1, 30, 5) lies outside" in caplog.text


def test_an_image_of_which_no_box_is_good_is_left_out(tmp_path):
    examples = found([OUTSIDE], [GOOD]).examples(tmp_path, 0.01)
    assert list(examples.inputs) == ["1.jpg"]
    assert str(examples.bad_records[0]) == "0.jpg: none of its 1 boxes can be used"


def test_too_many_bad_boxes_are_an_error(tmp_path):
    images = found([GOOD, OUTSIDE, OUTSIDE])
    with pytest.raises(ValueError, match=r"2 of 3 boxes cannot be used; the first: list:2: box \(20"):
        images.examples(tmp_path, 0.01)
    assert len(images.examples(tmp_path, 0.7)) == 1


def test_clipped_boxes_are_used_and_so_tolerated(tmp_path):
    examples = found([OVER, OVER, OVER]).examples(tmp_path, 0.0)
    assert (len(examples.targets[0]), len(examples.bad_records)) == (3, 3)


def test_too_many_bad_images_are_an_error(tmp_path):
    images = found([GOOD])
    images.skip("2.jpg", "there is no such file")
    images.skip("3.jpg", "there is no such file")
    with pytest.raises(ValueError, match=r"2 of 3 images cannot be used; the first: 2.jpg: there is no such file"):
        images.examples(tmp_path, 0.01)


# Masks.

LETTERS = ("sky", "road", "car")


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(values, depth=8, kind=0, extra=()):
    """A PNG whose stored values are `values` (H, W), packed by hand: kind 0 is grey, 3 has a palette."""
    height, width = values.shape
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    packed = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette(count, seed=0):
    """Random colours and transparencies."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 256, (count, 3)).astype(np.uint8)
    return colours, (chunk(b"PLTE", colours.tobytes()), chunk(b"tRNS", bytes(range(count))))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", [0, 3])
def test_values_are_those_that_are_stored(depth, kind):
    values = np.random.default_rng(depth).integers(0, 2**depth, (5, 13))
    extra = palette(2**depth)[1] if kind == 3 else ()
    read = png_values(png(values, depth, kind, extra))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, values)


def test_colours_of_a_palette_are_seen_without_their_transparency():
    values = np.random.default_rng(1).integers(0, 16, (5, 13))
    colours, extra = palette(16)
    np.testing.assert_array_equal(png_colours(png(values, 4, 3, extra)), colours[values])


def test_values_of_16_bits_are_kept():
    values = np.array([[0, 1, 300, 65535]])
    read = png_values(png(values, depth=16))
    assert (read.dtype, read.tolist()) == (np.uint16, values.tolist())


def test_equal_channels_are_one():
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    encoded = cv2.imencode(".png", np.repeat(values[..., None], 3, axis=-1))[1].tobytes()
    np.testing.assert_array_equal(png_values(encoded), values)


def written(path, data):
    path.write_bytes(data)
    return str(path)


def test_numbers_with_ignored_values(tmp_path):
    path = written(tmp_path / "m.png", png(np.array([[0, 1, 2], [11, 2, 255]])))
    mask = MaskFile(path, MaskCoding(LETTERS, (0, 1, 2), (11, 255)))
    read = mask.read((2, 3))
    assert (read.dtype, read.tolist()) == (np.uint8, [[0, 1, 2], [IGNORED, 2, IGNORED]])
    assert mask.labels == LETTERS


def test_values_need_not_be_consecutive(tmp_path):
    path = written(tmp_path / "m.png", png(np.array([[7, 1000, 0]]), depth=16))
    coding = MaskCoding(LETTERS, (1000, 7, 100_000), (0,))
    assert MaskFile(path, coding).read().tolist() == [[1, 0, IGNORED]]


def test_colours(tmp_path):
    pixels = np.array([[[128, 0, 0], [0, 0, 128], [0, 128, 0], [224, 224, 192]]], np.uint8)
    path = written(tmp_path / "m.png", cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    coding = MaskCoding(LETTERS, ((0, 0, 128), (128, 0, 0), (0, 128, 0)), ((224, 224, 192),))
    assert MaskFile(path, coding).read().tolist() == [[1, 0, 2, IGNORED]]


@pytest.mark.parametrize(("depth", "white"), [(1, 1), (8, 255), (16, 65535)])
def test_black_and_white_of_any_depth(tmp_path, depth, white):
    path = written(tmp_path / "m.png", png(np.array([[0, white, 0]]), depth))
    coding = MaskCoding(("background", "nucleus"), ((0, 0, 0), (255, 255, 255)))
    assert MaskFile(path, coding).read().tolist() == [[0, 1, 0]]


NUMBERED = MaskCoding(LETTERS, (0, 1, 2))
COLOURED = MaskCoding(("a", "b"), ((0, 0, 0), (9, 8, 7)))
PLAIN = png(np.array([[0, 1, 2]]))
JPEG = cv2.imencode(".jpg", np.zeros((4, 4), np.uint8))[1].tobytes()
COLOUR = cv2.imencode(".png", np.full((2, 2, 3), (1, 2, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("data", "coding", "words"),
    [
        (b"", NUMBERED, "the file is empty"),
        (b"no picture", NUMBERED, "not a JPEG, PNG"),
        (JPEG, NUMBERED, "masks are read from PNG files; this is JPEG. Convert it"),
        (PLAIN[:-20], NUMBERED, "the PNG data is truncated"),
        (PLAIN[:45] + b"\xff" + PLAIN[46:], NUMBERED, r"damaged \(a checksum differs\)"),
        (PLAIN[:8] + chunk(b"IHDR", PLAIN[16:24]) + chunk(b"IEND", b""), NUMBERED, r"damaged \(it has no header\)"),
        (PLAIN[:33] + chunk(b"IEND", b""), NUMBERED, "truncated or damaged"),
        (
            png(np.zeros((1, 1), int))[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)),
            NUMBERED,
            "claims 60000x60000 pixels, at most",
        ),
        (png(np.array([[0, 1], [2, 3]])), NUMBERED, "the value 3 at x=1, y=1 is no class's and not ignored$"),
        (png(np.array([[0, 255]])), NUMBERED, r"the value 255 at x=1, y=0 .* is read with colours=\(0, 255\)"),
        (COLOUR, NUMBERED, "a colour image, expected class numbers: give `colours`"),
        (COLOUR, COLOURED, r"the colour \(3, 2, 1\) at x=0, y=0 is no class's and not ignored"),
    ],
)
def test_masks_that_are_refused_by_name(tmp_path, data, coding, words):
    path = written(tmp_path / "m.png", data)
    with pytest.raises(BadExampleError, match=words) as caught:
        MaskFile(path, coding).read()
    assert caught.value.where == path
    assert str(caught.value).startswith(f"{path}: ")


def test_a_mask_of_another_size_is_refused(tmp_path):
    path = written(tmp_path / "m.png", PLAIN)
    with pytest.raises(BadExampleError, match=r"m.png: the mask has 3x1 pixels and its image 1x3"):
        MaskFile(path, NUMBERED).read((3, 1))


def test_a_mask_that_is_gone(tmp_path):
    with pytest.raises(BadExampleError, match=r"m.png: the mask cannot be read \(No such file"):
        MaskFile(str(tmp_path / "m.png"), NUMBERED).read()


@pytest.mark.parametrize(
    ("labels", "values", "ignored", "words"),
    [
        ((), (), (), "1 to 255 classes; received 0"),
        (tuple(map(str, range(256))), tuple(range(256)), (), "1 to 255 classes; received 256"),
        (("a", "b"), (0,), (), "2 `labels` need as many `values`; received 1"),
        (("a", "a"), (0, 1), (), "`labels` must differ from one another; 'a' is given twice"),
        (("a", "b"), (0, 0), (), "`values` must differ from one another; 0 is given twice"),
        (("a", "b"), (0, 1), (1,), "1 is given twice"),
        (("a", "b"), (0, (1, 2, 3)), (), "all pixel values or all colours"),
        (("a", "b"), (0, 1), ((1, 2, 3),), "all pixel values or all colours"),
    ],
)
def test_codings_that_are_refused(labels, values, ignored, words):
    with pytest.raises(ValueError, match=words):
        MaskCoding(labels, values, ignored)
