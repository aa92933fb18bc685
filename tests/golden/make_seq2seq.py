"""Make seq2seq.npz: what transformers' encoder-decoders with random weights say and generate.

    python -m venv /tmp/reference
    /tmp/reference/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors sentencepiece protobuf
    /tmp/reference/bin/python tests/golden/make_seq2seq.py

Weights are drawn from a seed by `random_state`, here and in the tests, so that only configs, shapes and answers are
kept: logits of a few inputs, and the sequences of greedy and beam search of fifty. The way back, Marian directories
that we write, is checked by hand in two steps:

    PYTHONPATH=. python tests/golden/make_seq2seq.py --export /tmp/exports       (our environment)
    /tmp/reference/bin/python tests/golden/make_seq2seq.py --check /tmp/exports
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
NUM_INPUTS, LONGEST, NUM_LOGITS, TARGET_LENGTH = 50, 12, 6, 9
BEAMS = 4

_SMALL = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 40,
}
_MARIAN = _SMALL | {
    "activation_function": "swish",
    "scale_embedding": True,
    "pad_token_id": 59,
    "decoder_start_token_id": 59,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
}
_T5 = {
    "vocab_size": 60,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 3,
    # transformers 5.23 cannot generate with more than `num_layers`.
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "decoder_start_token_id": 0,
}
_BANNED_PAD = {"bad_words_ids": [[59]], "max_length": 26, "num_beams": 4, "no_repeat_ngram_size": 2}

_GERMAN = {"max_length": 24, "num_beams": 4, "forced_bos_token_id": 7, "eos_token_id": [2, 11, 23]}

# Name, model type, config, generation config, further names of weights to draw with those whose shapes they have.
CASES: tuple[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, str]], ...] = (
    ("marian", "marian", _MARIAN, _BANNED_PAD, {}),
    (
        "marian_two_tables",
        "marian",
        _MARIAN
        | {
            "share_encoder_decoder_embeddings": False,
            "decoder_vocab_size": 50,
            "decoder_start_token_id": 49,
            "pad_token_id": 49,
            "activation_function": "relu",
        },
        {
            "bad_words_ids": [[49]],
            "max_length": 26,
            "num_beams": 4,
            "no_repeat_ngram_size": 2,
            "length_penalty": 0.6,
            "early_stopping": True,
        }
        | {"eos_token_id": [0, 11, 23]},
        {},
    ),
    ("bart", "bart", _SMALL, {"max_length": 24, "num_beams": 4, "no_repeat_ngram_size": 3, "min_length": 5}, {}),
    (
        "mbart",
        "mbart",
        _SMALL | {"scale_embedding": True},
        _GERMAN,
        {},
    ),
    ("t5", "t5", _T5, {"max_length": 30, "num_beams": 4, "length_penalty": 2.0, "eos_token_id": [1, 11, 23]}, {}),
    (
        "t5_gated",
        "t5",
        _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"max_length": 30, "num_beams": 4, "early_stopping": "never", "eos_token_id": [1, 11, 23]},
        {"lm_head.weight": "shared.weight"},
    ),
)


def random_state(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by name under which activations keep about their size and attention is far from even."""
    rng = np.random.default_rng(seed)
    state = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        if any(part in name for part in ("shared", "lm_head", "embed_tokens")):
            state[name] = (shape[1] ** -0.5 * 0.8 * rng.standard_normal(shape)).astype(np.float32)
        elif len(shape) > 1 and name != "final_logits_bias":
            # Parts outweigh what passes by them: else decoders repeat themselves, and beams are equal but for rounding.
            gain = 2.5 if any(part in name for part in ("out_proj", "fc2", ".o.", "wo.")) else 1.5
            gain = 0.6 if ".q." in name else gain  # T5 does not scale its scores
            state[name] = (gain / np.sqrt(shape[1]) * rng.standard_normal(shape)).astype(np.float32)
        elif "norm" in name and name.endswith("weight"):
            # Of either sign: else a table that is input and output makes decoders repeat their last token.
            state[name] = (rng.uniform(0.7, 1.4, shape) * rng.choice([-1, 1], shape)).astype(np.float32)
        else:
            state[name] = (0.3 * rng.standard_normal(shape)).astype(np.float32)
    if "final_logits_bias" in state:
        state["final_logits_bias"][:, [0, 2]] += 0.9  # where targets end, so that some do
    return state


def batch(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Fifty source texts of 1 to 12 tokens with their mask, and what the decoder reads of the first six."""
    rng = np.random.default_rng(1)
    lengths = 1 + np.arange(NUM_INPUTS) % LONGEST
    mask = np.arange(LONGEST) < lengths[:, None]
    source_ids = np.where(mask, rng.integers(3, config["vocab_size"] - 1, mask.shape), config["pad_token_id"])
    last = config.get("decoder_vocab_size") or config["vocab_size"]
    target_ids = rng.integers(3, last - 1, (NUM_LOGITS, TARGET_LENGTH))
    return {"source_ids": source_ids.astype(np.int32), "source_mask": mask, "target_ids": target_ids.astype(np.int32)}


def reference(
    model_type: str, config: Mapping[str, Any], generation: Mapping[str, Any], more: Mapping[str, str]
) -> dict[str, Any]:
    """Configs as transformers writes them, shapes of the weights, logits and sequences."""
    import transformers
    from safetensors.numpy import load_file

    described = transformers.AutoConfig.for_model(model_type, **config)
    model = transformers.AutoModelForSeq2SeqLM.from_config(described)
    for key, value in generation.items():
        setattr(model.generation_config, key, value)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        text = Path(directory, "config.json").read_text()
        settings = Path(directory, "generation_config.json").read_text()
        shapes = {name: list(w.shape) for name, w in load_file(Path(directory, "model.safetensors")).items()}
    shapes |= {name: shapes[like] for name, like in more.items()}
    if more:  # transformers 5 does not write this of a config that it was given
        text = json.dumps(json.loads(text) | {"tie_word_embeddings": False})
    return {
        "config": text,
        "generation": settings,
        "shapes": json.dumps(shapes),
        **answers(text, settings, random_state(shapes)),
    }


def answers(text: str, settings: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits and sequences of a model that is read from a directory."""
    import torch
    import transformers
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(text)
        Path(directory, "generation_config.json").write_text(settings)
        save_file(dict(tensors), Path(directory, "model.safetensors"), metadata={"format": "pt"})
        load = transformers.AutoModelForSeq2SeqLM.from_pretrained
        model, report = load(directory, output_loading_info=True)
    assert not report["unexpected_keys"], report
    return generated(model.eval(), batch(json.loads(text)), torch)


def generated(model: Any, inputs: Mapping[str, np.ndarray], torch: Any) -> dict[str, np.ndarray]:
    """Logits of the first inputs, and the sequences of all."""
    source = torch.from_numpy(inputs["source_ids"]).long()
    mask = torch.from_numpy(inputs["source_mask"]).long()
    target = torch.from_numpy(inputs["target_ids"]).long()
    with torch.no_grad():
        logits = model(
            input_ids=source[:NUM_LOGITS], attention_mask=mask[:NUM_LOGITS], decoder_input_ids=target
        ).logits.numpy()
        greedy = model.generate(source, attention_mask=mask, num_beams=1, do_sample=False)
        options = {"num_beams": BEAMS, "do_sample": False, "num_return_sequences": 2}
        beams = model.generate(source, attention_mask=mask, output_scores=True, return_dict_in_generate=True, **options)
    return {
        "logits": logits,
        "greedy": greedy.numpy().astype(np.int16),
        "beams": beams.sequences.numpy().astype(np.int16).reshape(NUM_INPUTS, 2, -1),
        "scores": beams.sequences_scores.numpy().reshape(NUM_INPUTS, 2),
    }


def reference_buckets() -> dict[str, np.ndarray]:
    """T5's buckets (32 of them, longest distance 128) of the distances -200 to 200, both ways and one way."""
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    buckets = T5Attention._relative_position_bucket
    distances = torch.arange(-200, 201)
    return {
        f"buckets_{name}": buckets(distances, bidirectional=both, num_buckets=32, max_distance=128)
        .numpy()
        .astype(np.int16)
        for name, both in (("both_ways", True), ("one_way", False))
    }


def export(target: Path) -> None:
    """Write each Marian case with our code, and our answers beside it. Runs in our environment."""
    from safetensors.numpy import save_file

    from nlp.models.seq2seq import build_seq2seq
    from nlp.seq2seq_checkpoints import read_hugging_face, write_marian

    golden = np.load(HERE / "seq2seq.npz")
    for name, model_type, *_ in CASES:
        if model_type != "marian":
            continue
        with tempfile.TemporaryDirectory() as origin:
            Path(origin, "config.json").write_text(str(golden[f"{name}.config"]))
            Path(origin, "generation_config.json").write_text(str(golden[f"{name}.generation"]))
            save_file(random_state(json.loads(str(golden[f"{name}.shapes"]))), Path(origin, "model.safetensors"))
            checkpoint = read_hugging_face(origin)
            model = build_seq2seq(checkpoint.config)
            checkpoint.load_weights(model)
        write_marian(target / name, model, checkpoint.decoding)


def check(exports: Path) -> None:
    """Load what `export` wrote in transformers, and say whether logits and sequences are those of the origin."""
    import torch
    import transformers

    golden = np.load(HERE / "seq2seq.npz")
    for directory in sorted(exports.iterdir()):
        load = transformers.AutoModelForSeq2SeqLM.from_pretrained
        model, report = load(directory, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        config = json.loads((directory / "config.json").read_text())
        found = generated(model.eval(), batch(config), torch)
        name = directory.name
        difference = np.abs(found["logits"] - golden[f"{name}.logits"]).max()
        same = [np.array_equal(found[key], golden[f"{name}.{key}"]) for key in ("greedy", "beams")]
        print(f"{name:20} logits {difference:.1e}, greedy and beams the same: {same}")


def main() -> None:
    """Write the file, or check the way back."""
    parser = argparse.ArgumentParser(description="Reference answers of encoder-decoders, by transformers.")
    parser.add_argument("--export", type=Path, help="write Marian checkpoints with our code instead")
    parser.add_argument("--check", type=Path, help="load such checkpoints in transformers instead")
    options = parser.parse_args()
    if options.export or options.check:
        export(options.export) if options.export else check(options.check)
        return
    values: dict[str, Any] = reference_buckets()
    for name, model_type, config, generation, more in CASES:
        found = reference(model_type, config, generation, more)
        values |= {f"{name}.{key}": value for key, value in found.items()}
        end = json.loads(found["generation"])["eos_token_id"]
        end = end if isinstance(end, list) else [end]
        lengths = [int(np.argmax(np.isin(np.append(row[1:], end[0]), end))) + 1 for row in found["greedy"]]
        print(name, found["logits"].std(), found["greedy"].shape, found["beams"].shape, lengths)
    np.savez_compressed(HERE / "seq2seq.npz", **values)


if __name__ == "__main__":
    main()
