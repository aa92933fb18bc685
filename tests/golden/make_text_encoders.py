"""Make text_encoders.npz: what transformers' encoders and heads with random weights say of padded batches.

    python -m venv /tmp/reference
    /tmp/reference/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors sentencepiece protobuf
    /tmp/reference/bin/python tests/golden/make_text_encoders.py
    /tmp/reference/bin/python tests/golden/make_text_encoders.py --minilm DIRECTORY     (also makes minilm_l6.npz)

Weights are drawn from a seed by `random_state`, here and in the tests, so that only configs, shapes and logits are
kept. The way back, checkpoints that we write, is checked by hand in two steps:

    PYTHONPATH=. python tests/golden/make_text_encoders.py --export /tmp/exports       (our environment)
    /tmp/reference/bin/python tests/golden/make_text_encoders.py --check /tmp/exports
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
LENGTH, LENGTHS = 20, (20, 13, 6, 1)

_SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
}
_DISTILBERT = {
    "vocab_size": 100,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 40,
}
_ROBERTA = _SMALL | {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
_ELECTRA = _SMALL | {"embedding_size": 16}
_ALBERT = _SMALL | {"embedding_size": 16, "num_hidden_layers": 3}
_DEBERTA_V3 = _SMALL | {
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
}
# As deberta-v2-xlarge, but with all that it leaves out: absolute positions, segments, own projections, no buckets.
_DEBERTA_V2 = _SMALL | {
    "relative_attention": True,
    "pos_att_type": "c2p|p2c",
    "max_relative_positions": 12,
    "conv_kernel_size": 3,
    "conv_act": "gelu",
    "embedding_size": 16,
}
_MULTI = {"problem_type": "multi_label_classification"}
_NUMBER = {"problem_type": "regression", "num_labels": 1}

# Name, model type, config, head.
CASES: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("bert", "bert", _SMALL, "SequenceClassification"),
    ("bert_tokens", "bert", _SMALL, "TokenClassification"),
    ("bert_regression", "bert", _SMALL | _NUMBER | {"hidden_act": "gelu_new"}, "SequenceClassification"),
    ("distilbert", "distilbert", _DISTILBERT, "SequenceClassification"),
    ("distilbert_tokens", "distilbert", _DISTILBERT, "TokenClassification"),
    ("roberta", "roberta", _ROBERTA | _MULTI, "SequenceClassification"),
    ("roberta_tokens", "roberta", _ROBERTA, "TokenClassification"),
    ("xlm_roberta", "xlm-roberta", _ROBERTA, "SequenceClassification"),
    ("xlm_roberta_tokens", "xlm-roberta", _ROBERTA, "TokenClassification"),
    ("camembert", "camembert", _ROBERTA | _NUMBER, "SequenceClassification"),
    ("camembert_tokens", "camembert", _ROBERTA, "TokenClassification"),
    ("electra", "electra", _ELECTRA | _MULTI, "SequenceClassification"),
    ("electra_tokens", "electra", _ELECTRA | {"embedding_size": 32}, "TokenClassification"),
    ("albert", "albert", _ALBERT | {"num_labels": 4}, "SequenceClassification"),
    ("albert_tokens", "albert", _ALBERT | {"num_hidden_groups": 2}, "TokenClassification"),
    ("deberta_v3", "deberta-v2", _DEBERTA_V3, "SequenceClassification"),
    ("deberta_v3_tokens", "deberta-v2", _DEBERTA_V3, "TokenClassification"),
    ("deberta_v2", "deberta-v2", _DEBERTA_V2 | _MULTI, "SequenceClassification"),
    ("deberta_v2_tokens", "deberta-v2", _DEBERTA_V3 | {"pos_att_type": ["c2p"]}, "TokenClassification"),
)
MINILM_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Rain is expected in the north, and a little snow.",
    "Yes.",
)


# Decoders answer for a text with its last token, which transformers finds by the number of the padding.
DECODER_CASES: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    (
        "gpt2",
        "gpt2",
        {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "pad_token_id": 0},
        "SequenceClassification",
    ),
)


def random_state(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by name under which activations keep about their size and attention is far from even."""
    rng = np.random.default_rng(seed)
    state = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        if len(shape) > 1:
            spread = 0.7 if "embeddings" in name and "LayerNorm" not in name else 1.5 / np.sqrt(np.prod(shape[1:]))
            state[name] = (spread * rng.standard_normal(shape)).astype(np.float32)
        elif "norm" in name.lower() and name.endswith("weight"):
            state[name] = rng.uniform(0.7, 1.4, shape).astype(np.float32)
        else:
            state[name] = (0.2 * rng.standard_normal(shape)).astype(np.float32)
    return state


def batch(num_segments: int, pad_id: int) -> dict[str, np.ndarray]:
    """The three inputs of our encoders: texts of `LENGTHS` tokens, padded to `LENGTH`."""
    rng = np.random.default_rng(1)
    mask = np.arange(LENGTH) < np.asarray(LENGTHS)[:, None]
    token_ids = np.where(mask, rng.integers(5, 100, mask.shape), pad_id).astype(np.int32)
    second = np.arange(LENGTH) >= np.asarray(LENGTHS)[:, None] // 2
    return {"token_ids": token_ids, "segment_ids": (second & mask & (num_segments > 1)).astype(np.int32), "mask": mask}


def batch_of(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The batch for a model with this config.json."""
    return batch(config.get("type_vocab_size") or 0, config["pad_token_id"])


def reference_logits(model: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a transformers model says of a batch."""
    import torch

    given = {
        "input_ids": torch.from_numpy(inputs["token_ids"]).long(),
        "attention_mask": torch.from_numpy(inputs["mask"]).long(),
    }
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        given["token_type_ids"] = torch.from_numpy(inputs["segment_ids"]).long()
    with torch.no_grad():
        logits: np.ndarray = model.eval()(**given).logits.numpy()
    return logits


def reference(model_type: str, config: Mapping[str, Any], head: str) -> dict[str, Any]:
    """Config as transformers writes it, shapes of the weights, and logits for `batch_of(config)`."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    described = transformers.AutoConfig.for_model(model_type, **({"num_labels": 3} | config))
    model = getattr(transformers, f"AutoModelFor{head}").from_config(described)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        text = Path(directory, "config.json").read_text()
        shapes = {name: list(w.shape) for name, w in load_file(Path(directory, "model.safetensors")).items()}
    model.load_state_dict({name: torch.from_numpy(w) for name, w in random_state(shapes).items()})
    logits = reference_logits(model, batch_of(json.loads(text)))
    return {"config": text, "shapes": json.dumps(shapes), "logits": logits}


def reference_buckets() -> np.ndarray:
    """DeBERTa's buckets (256 of them, longest distance 512) of the distances -700 to 700."""
    import torch
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    return make_log_bucket_position(torch.arange(-700, 701), 256, 512).numpy().astype(np.int16)


def make_minilm(directory: Path) -> None:
    """Write token ids and last hidden state of three sentences."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    given = tokenizer(list(MINILM_TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**given).last_hidden_state.numpy()
    ids, mask = given["input_ids"].numpy().astype(np.int32), given["attention_mask"].numpy().astype(bool)
    np.savez_compressed(HERE / "minilm_l6.npz", token_ids=ids, mask=mask, hidden=hidden)


def export(target: Path) -> None:
    """Write each case with our code, and our logits beside it. Runs in our environment."""
    from safetensors.numpy import save_file

    from nlp.checkpoints import read_hugging_face, write_hugging_face
    from nlp.models.encoder import build_encoder
    from nlp.models.heads import build_head

    golden = np.load(HERE / "text_encoders.npz")
    for name, *_ in CASES:
        with tempfile.TemporaryDirectory() as origin:
            Path(origin, "config.json").write_text(str(golden[f"{name}.config"]))
            save_file(random_state(json.loads(str(golden[f"{name}.shapes"]))), Path(origin, "model.safetensors"))
            text = read_hugging_face(origin)
            encoder = build_encoder(text.config)
            head = build_head(text.head_config, encoder.output_shape[-1], len(text.labels))
            text.load_weights(encoder, head)
        described = {"family": text.family, "config": text.config, "head_config": text.head_config}
        described |= {"labels": text.labels, "kind": text.kind}
        write_hugging_face(target / name, encoder=encoder, head=head, **described)
        inputs = batch_of(json.loads(str(golden[f"{name}.config"])))
        np.savez(target / name / "expected.npz", logits=np.asarray(head(encoder(inputs))), **inputs)


def check(exports: Path) -> None:
    """Load what `export` wrote in transformers, and print the largest difference of each."""
    import transformers

    for name, _, _, head in CASES:
        expected = np.load(exports / name / "expected.npz")
        load = getattr(transformers, f"AutoModelFor{head}").from_pretrained
        model, report = load(exports / name, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        logits = reference_logits(model, expected)
        real = expected["mask"] if logits.ndim == 3 else slice(None)
        print(f"{name:20} {np.abs(logits - expected['logits'])[real].max():.1e}")


def main() -> None:
    """Write the file, or check the way back."""
    parser = argparse.ArgumentParser(description="Reference logits of text encoders, by transformers.")
    parser.add_argument("--minilm", type=Path, help="directory of all-MiniLM-L6-v2")
    parser.add_argument("--export", type=Path, help="write checkpoints with our code instead")
    parser.add_argument("--check", type=Path, help="load such checkpoints in transformers instead")
    options = parser.parse_args()
    if options.export or options.check:
        export(options.export) if options.export else check(options.check)
        return
    values = {}
    for name, model_type, config, head in (*CASES, *DECODER_CASES):
        values |= {f"{name}.{key}": value for key, value in reference(model_type, config, head).items()}
    np.savez_compressed(HERE / "text_encoders.npz", distance_buckets=reference_buckets(), **values)
    if options.minilm:
        make_minilm(options.minilm)


if __name__ == "__main__":
    main()
