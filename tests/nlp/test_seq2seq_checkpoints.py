"""Encoder-decoders of every family against what transformers said of them; see tests/golden/make_seq2seq.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nlp.decoding import DecodingConfig, decode
from nlp.models.seq2seq import Seq2SeqTransformer, build_seq2seq
from nlp.seq2seq_checkpoints import decoding_config, generation_values, read_hugging_face, write_marian
from tests.golden.make_seq2seq import BEAMS, CASES, NUM_LOGITS, batch, random_state

golden = np.load(Path(__file__).parents[1] / "golden" / "seq2seq.npz")
NAMES = [name for name, *_ in CASES]


def values_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(str(golden[f"{name}.config"]))
    return values


def tensors_of(name: str) -> dict[str, np.ndarray]:
    return random_state(json.loads(str(golden[f"{name}.shapes"])))


def checkpoint(directory: Path, name: str, tensors: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values_of(name) | changes))
    (directory / "generation_config.json").write_text(str(golden[f"{name}.generation"]))
    save_file(tensors_of(name) if tensors is None else tensors, directory / "model.safetensors")
    return directory


def loaded(directory: Path) -> tuple[Seq2SeqTransformer, DecodingConfig]:
    found = read_hugging_face(directory)
    model = build_seq2seq(found.config)
    found.load_weights(model)
    return model, found.decoding


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_sequences_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, decoding = loaded(checkpoint(tmp_path, name))
    inputs = batch(values_of(name))
    few = {key: value[:NUM_LOGITS] for key, value in inputs.items()}
    expected = golden[f"{name}.logits"]
    assert expected.std() > 0.1
    # Measured at most 5e-6.
    np.testing.assert_allclose(np.asarray(model(few)), expected, atol=1e-5, rtol=0)

    assert decoding.num_beams == BEAMS
    greedy = decode(model, inputs["source_ids"], inputs["source_mask"], decoding.replace(num_beams=1))
    assert_sequences(greedy.token_ids[:, 0], greedy.lengths[:, 0], golden[f"{name}.greedy"])
    beams = decode(model, inputs["source_ids"], inputs["source_mask"], decoding.replace(num_answers=2))
    for answer in range(2):
        assert_sequences(beams.token_ids[:, answer], beams.lengths[:, answer], golden[f"{name}.beams"][:, answer])
    np.testing.assert_allclose(beams.scores, golden[f"{name}.scores"], atol=1e-5, rtol=1e-5)


def assert_sequences(ours: np.ndarray, lengths: np.ndarray, theirs: np.ndarray) -> None:
    """Equal up to the end; the start token, which only theirs have, left out."""
    for row, length, expected in zip(ours, lengths, theirs[:, 1:], strict=True):
        assert row[:length].tolist() == expected[:length].tolist()
    # The longest is as long as theirs: they cut their arrays to it.
    assert lengths.max() == theirs.shape[1] - 1


@pytest.mark.parametrize("name", ["marian", "marian_two_tables"])
def test_what_is_written_is_what_was_read(name: str, tmp_path: Path) -> None:
    model, decoding = loaded(checkpoint(tmp_path / "theirs", name))
    write_marian(tmp_path / "ours", model, decoding)
    again, decoding_again = loaded(tmp_path / "ours")
    assert (again.config, decoding_again) == (model.config, decoding)
    ours, theirs = load_file(tmp_path / "ours" / "model.safetensors"), tensors_of(name)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


def test_only_what_marian_can_express_is_written(tmp_path: Path) -> None:
    model, decoding = loaded(checkpoint(tmp_path, "bart"))
    with pytest.raises(ValueError, match=r"embedding_norm=True.*positions='learned'"):
        write_marian(tmp_path / "ours", model, decoding)


def test_shards_and_copies_of_the_tables_are_read(tmp_path: Path) -> None:
    tensors = tensors_of("marian")
    table = tensors["model.shared.weight"]
    computed = {
        f"model.{stack}.embed_positions.weight": np.zeros((40, 32), np.float32) for stack in ("encoder", "decoder")
    }
    copies = {"lm_head.weight": table, "model.encoder.embed_tokens.weight": table}
    directory = checkpoint(tmp_path, "marian", tensors)
    (directory / "model.safetensors").unlink()
    shards = {"model-1.safetensors": tensors, "model-2.safetensors": computed | copies}
    for file, part in shards.items():
        save_file(part, directory / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    model, _ = loaded(directory)
    np.testing.assert_array_equal(model.source_tokens.table.numpy(), table)


# What does not fit.


def test_missing_and_superfluous_weights_are_named(tmp_path: Path) -> None:
    tensors = tensors_of("t5")
    tensors["decoder.stray.weight"] = tensors.pop("encoder.block.1.layer.1.DenseReluDense.wo.weight")
    with pytest.raises(ValueError, match=r"no place for decoder\.stray.*no weight for encoder\.block\.1.*wo"):
        loaded(checkpoint(tmp_path, "t5", tensors))


def test_a_copy_that_differs_is_an_error(tmp_path: Path) -> None:
    tensors = tensors_of("bart")
    tensors["lm_head.weight"] = tensors["model.shared.weight"] + 1
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.shared\.weight"):
        loaded(checkpoint(tmp_path, "bart", tensors))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("marian", {"model_type": "pegasus"}, "marian, bart, mbart, t5 can be read; this is 'pegasus'"),
        ("marian", {"normalize_before": True}, "normalize_before=True is not supported in a marian model"),
        ("marian", {"activation_function": "mish"}, "'mish' is not supported"),
        ("marian", {"d_model": "32"}, "hidden_size.*whole number"),
        ("t5", {"feed_forward_proj": "double-gelu"}, "double-gelu"),
    ],
)
def test_an_unsupported_config_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_hugging_face(checkpoint(tmp_path, name, **changes))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, "marian")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match="can run code when loaded"):
        read_hugging_face(directory)


# Generation settings.


def test_settings_of_both_files_are_read_and_the_second_counts() -> None:
    values = {"eos_token_id": 0, "decoder_start_token_id": 9, "pad_token_id": 9, "max_length": 512, "num_beams": 6}
    found = decoding_config(values, {"num_beams": 4, "bad_words_ids": [[9]], "early_stopping": True, "min_length": 3})
    assert (found.num_beams, found.max_length, found.min_length, found.stop) == (4, 511, 2, "first")
    assert (found.start_id, found.end_ids, found.pad_id, found.banned_ids) == (9, (0,), 9, (9,))
    assert decoding_config({}, generation_values(found)) == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder_start_token_id": 1}, "eos_token_id"),
        ({"eos_token_id": 1}, "decoder_start_token_id"),
        ({"eos_token_id": 1, "decoder_start_token_id": 1, "bad_words_ids": [[3, 4]]}, r"single tokens.*\[3, 4\]"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoding_config({}, settings)
