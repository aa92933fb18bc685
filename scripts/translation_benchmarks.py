"""Benchmarks of translation, for `benchmark.py`: beside PyTorch and transformers, which run in a process of their own.

Where these are not installed beside TensorFlow, TRIPTYCH_PEER names the Python that has them. Both sides have the same
weights (ours, written as a Hugging Face Marian directory), the same sources and as many threads as there are cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from experiment import ROOT, peer_process

from nlp.decoding import DecodingConfig, decode
from shared.runtime import activated, current_runtime
from shared.training_config import TrainingConfig

# An OPUS-MT model.
_VOCAB_SIZE, _PAD = 58101, 58100
_BATCH, _SOURCE, _LENGTH = 16, 30, 30
_LONGER = 120


def translation_decode(repeats: int) -> dict[str, Any]:
    """Tokens/s of greedy search and of four beams, beside transformers' `generate`; time for longer targets; memory.

    Ours also with XLA, which compiles while it warms up.

    No target ends early: the end token is banned until the last step.
    """
    from benchmark import measured

    decoding = _TimedModel("float32")
    result = decoding.compared({"transformers generate": "float32"}, repeats, with_xla=True)
    lengths = {str(length): functools.partial(decoding.ours, 1, length) for length in (_LENGTH, _LONGER)}
    by_length = measured(lengths, repeats)
    result["figures"] |= {
        f"tokens/s, greedy, {length} new ones": rates["median"] for length, rates in by_length.items()
    }
    return result


def translation_decode_bfloat16(repeats: int) -> dict[str, Any]:
    """The same with our layers in bfloat16, beside transformers' in float32, its default, and in bfloat16."""
    peers = {"transformers generate in float32": "float32", "transformers generate in bfloat16": "bfloat16"}
    return _TimedModel("mixed_bfloat16").compared(peers, repeats, with_xla=True)


class _TimedModel:
    """A model with random weights that is timed beside transformers'; `precision` is a policy of Keras."""

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.model = _model()
        rng = np.random.default_rng(0)
        self.source_ids = rng.integers(1, _PAD, (_BATCH, _SOURCE)).astype(np.int32)
        self.mask = np.ones(self.source_ids.shape, bool)
        self.last: dict[str, np.ndarray] = {}
        self.peaks: dict[str, int] = {}

    def ours(self, beams: int, length: int = _LENGTH, *, xla: bool = False) -> float:
        compiling = activated(dataclasses.replace(current_runtime(), xla=True)) if xla else contextlib.nullcontext()
        start = time.perf_counter()
        with compiling:
            found = decode(self.model, self.source_ids, self.mask, _decoding(beams, length))
        seconds = time.perf_counter() - start
        self.last["triptych with XLA" if xla else "triptych"] = found.token_ids[:, 0]
        return _BATCH * length / seconds

    def theirs(self, name: str, peer: Callable[..., dict[str, Any]], beams: int) -> float:
        answer = peer(beams=beams, length=_LENGTH)
        self.last[name], self.peaks[name] = np.asarray(answer["tokens"]), answer["peak_mib"]
        return _BATCH * _LENGTH / float(answer["seconds"])

    def compared(self, peers: dict[str, str], repeats: int, *, with_xla: bool = False) -> dict[str, Any]:
        """Rates, ratios and memory; `peers` maps names to the precision that each computes in."""
        from benchmark import measured, ratios

        size = f"{_BATCH} sources of {_SOURCE} tokens, {_LENGTH} new ones"
        files = f"random weights of OPUS-MT's size; {size}; {self.precision}"
        result: dict[str, Any] = {"unit": "target tokens/s", "files": files, "rates": {}, "ratios": {}, "figures": {}}
        own = {"triptych": False, **({"triptych with XLA": True} if with_xla else {})}
        with contextlib.ExitStack() as stack:
            arrays = {"source_ids": self.source_ids, "mask": self.mask}
            started = {name: stack.enter_context(_peer(self.model, arrays, kind)) for name, kind in peers.items()}
            for beams, search in ((1, "greedy"), (4, "beam 4")):
                sides = {f"{name}, {search}": functools.partial(self.ours, beams, xla=xla) for name, xla in own.items()}
                for name, (peer, _) in started.items():
                    sides[f"{name}, {search}"] = functools.partial(self.theirs, name, peer, beams)
                rates = measured(sides, repeats)
                result["rates"] |= rates
                for name in own:
                    compared = {side: rate for side, rate in rates.items() if side.split(",")[0] in (name, *peers)}
                    result["ratios"] |= ratios(compared, f"{name}, {search}")
                for name, kind in peers.items():
                    if kind == self.precision:  # rounded otherwise, random weights choose other tokens
                        equal = [float(np.mean(self.last[side] == self.last[name])) for side in own]
                        result["figures"][f"share of equal tokens, {search}"] = min(equal)
            _, directory = next(iter(started.values()))
            for name, xla in own.items():
                result["figures"][f"peak memory of {name}, MiB"] = _own_peak(directory, self.precision, xla=xla)
        result["figures"] |= {f"peak memory of {name}, MiB": peak for name, peak in self.peaks.items()}
        return result


def translation_train(repeats: int) -> dict[str, Any]:
    """Target tokens/s of training steps on the same batches: loss, gradients, clipping, AdamW."""
    from benchmark import measured, ratios

    from nlp.models.token_loss import token_cross_entropy
    from nlp.pairs import pair_arrays, stack_pairs
    from shared.data import InputPipeline, Stages
    from shared.optimizers import build_optimizer
    from shared.training import TrainingTask, TrainStep

    model = _model()
    rng = np.random.default_rng(0)
    batches = []
    for middle in (12, 20, 28, 36):
        lengths = rng.integers(middle - 3, middle + 4, (_BATCH, 2))
        rows = [[rng.integers(1, _PAD, length) for length in pair] for pair in lengths]
        pairs = [pair_arrays(source, target, max_length=_LONGER) for source, target in rows]
        batches.append(stack_pairs(pairs, start_id=_PAD, pad_id=_PAD))
    count = sum(int((batch["targets"] >= 0).sum()) for batch in batches)

    def loss(batch: dict[str, Any]) -> Any:
        inputs = {key: batch[key] for key in ("source_ids", "source_mask", "target_ids")}
        return token_cross_entropy(model(inputs, training=True), batch["targets"])

    training = TrainingConfig(learning_rate=1e-5, weight_decay=0.01)
    nothing = InputPipeline(([0], [0]), Stages(encode=lambda *_: {}))
    task = TrainingTask(model=model, loss=loss, batches=nothing, varying_shapes=True)
    step = TrainStep(task, build_optimizer(training, model.trainable_variables, 1e-5), training)

    def ours() -> float:
        start = time.perf_counter()
        for batch in batches:
            step([batch])
        step.loss_sum.numpy()
        return count / (time.perf_counter() - start)

    arrays = {f"{key}_{number}": array for number, batch in enumerate(batches) for key, array in batch.items()}
    with _peer(model, arrays) as (peer, _):
        sides = {"triptych step": ours, "PyTorch step": lambda: count / float(peer(batches=len(batches))["seconds"])}
        rates = measured(sides, repeats)
    return {
        "unit": "target tokens/s",
        "files": f"random weights of OPUS-MT's size; {len(batches)} batches of {_BATCH} pairs, 9 to 39 tokens; float32",
        "rates": rates,
        "ratios": ratios(rates, "triptych step"),
    }


def _decoding(beams: int, length: int) -> DecodingConfig:
    # As `min_new_tokens` has it, the end token is never allowed.
    return DecodingConfig(
        num_beams=beams,
        max_length=length,
        min_length=length,
        start_id=_PAD,
        pad_id=_PAD,
        end_ids=(0,),
        banned_ids=(_PAD,),
        scores=beams > 1,
    )


def _model() -> Any:
    from nlp.models.seq2seq import build_seq2seq
    from nlp.models.seq2seq_config import Seq2SeqConfig
    from shared.runtime import seeded

    with seeded(0):
        return build_seq2seq(Seq2SeqConfig(vocab_size=_VOCAB_SIZE))


def _own_peak(directory: str, precision: str, *, xla: bool) -> int:
    """The most memory that a process of ours holds which does what the peer's does: reads the checkpoint, decodes."""
    command = [sys.executable, __file__, directory, precision, "on" if xla else "off"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def _decode_and_print_peak(directory: str, precision: str, xla: str) -> None:
    from shared.runtime import RuntimeConfig

    RuntimeConfig.from_dict({"precision": precision, "xla": xla}).apply()
    from nlp.models.seq2seq import build_seq2seq
    from nlp.seq2seq_checkpoints import read_hugging_face

    checkpoint = read_hugging_face(directory)
    model = build_seq2seq(checkpoint.config)
    checkpoint.load_weights(model)
    arrays = np.load(Path(directory) / "arrays.npz")
    for beams in (1, 4):
        decode(model, arrays["source_ids"], arrays["mask"], _decoding(beams, _LENGTH))
    lines = Path("/proc/self/status").read_text().splitlines()
    print(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024)


@contextlib.contextmanager
def _peer(
    model: Any, arrays: dict[str, np.ndarray], precision: str = "float32"
) -> Iterator[tuple[Callable[..., dict[str, Any]], str]]:
    """A function that asks the peer for something (torch_translation.py), and the directory of its checkpoint."""
    from nlp.seq2seq_checkpoints import write_marian

    with tempfile.TemporaryDirectory() as directory:
        write_marian(directory, model, _decoding(4, _LENGTH).replace(min_length=0))
        np.savez(Path(directory) / "arrays.npz", allow_pickle=False, **arrays)
        threads = str(len(os.sched_getaffinity(0)))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with peer_process("torch_translation.py", directory, threads, precision, **pipes) as process:
            yield functools.partial(_answer, process), directory
            assert process.stdin is not None
            process.stdin.close()


def _answer(process: subprocess.Popen[str], **wanted: Any) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(wanted) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("The process with PyTorch ended; it needs torch and transformers (TRIPTYCH_PEER).")
    answer: dict[str, Any] = json.loads(line)
    return answer


if __name__ == "__main__":
    _decode_and_print_peak(*sys.argv[1:])
