"""What gradient checkpointing saves and costs, for `benchmark.py`: each side trains in a process of its own.

    python scripts/memory_benchmarks.py on      # such a process: a step for each line on stdin, answered with seconds

The last answer, after the end of stdin, is the most resident memory, in MiB: after building, and in all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from experiment import ROOT
from gpu_benchmarks import Sizes, text_task

# Attention over so many tokens is what takes the memory: heads x tokens x tokens numbers, several times in each layer.
SIZES = Sizes(layers=6, width=256, heads=4, tokens=1024, texts=32, text_batch=4)


def gradient_checkpointing(repeats: int, *, sizes: Sizes = SIZES) -> dict[str, Any]:
    """Training texts/s and peak memory of a transformer encoder on long texts, with and without."""
    from benchmark import measured, ratios

    names = {"off": "as usual", "on": "gradient checkpointing"}
    figures: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        steps = {choice: stack.enter_context(_process(choice, sizes)) for choice in names}
        rates = measured({names[choice]: _rate(step, sizes.text_batch) for choice, step in steps.items()}, repeats)
        for choice, step in steps.items():
            built, peak = step(end=True)
            figures |= {f"peak memory, {names[choice]} (MiB)": peak}
            figures |= {f"of it in training, {names[choice]} (MiB)": peak - built}
    off, on = (figures[f"of it in training, {names[choice]} (MiB)"] for choice in ("off", "on"))
    return {
        "unit": "training texts/s",
        "files": f"{sizes.text_batch} made texts of {sizes.tokens} tokens a step; transformer from scratch, "
        f"{sizes.layers} layers, {sizes.width} wide, {sizes.heads} heads, AdamW, float32",
        "rates": rates,
        "ratios": ratios(rates, names["on"]),
        # Of networks as small as those of tests, training may need no more than building.
        "figures": figures | ({"memory in training, with / without": on / off} if off else {}),
    }


def _rate(step: Callable[..., Any], num_texts: int) -> Callable[[], float]:
    return lambda: num_texts / step()


@contextlib.contextmanager
def _process(choice: str, sizes: Sizes) -> Iterator[Callable[..., Any]]:
    command = [sys.executable, str(ROOT / "scripts" / "memory_benchmarks.py"), choice]
    command.append(json.dumps(dataclasses.asdict(sizes)))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def step(*, end: bool = False) -> Any:
            """Seconds of one step; at the end the memory."""
            assert process.stdin is not None
            assert process.stdout is not None
            if end:
                process.stdin.close()
            else:
                process.stdin.write("\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                raise RuntimeError(f"The process that trains with checkpointing {choice} ended.")
            return json.loads(answer)

        yield step


def _train(choice: str, sizes: Sizes) -> None:
    from shared.optimizers import build_optimizer
    from shared.runtime import RuntimeConfig
    from shared.training import TrainStep

    RuntimeConfig().apply()
    with text_task(sizes) as (task, training):
        training = training.replace(gradient_checkpointing=choice == "on")
        step = TrainStep(task, build_optimizer(training, task.model.trainable_variables, 1e-4), training)
        batch = next(task.batches.epoch())
        built = _peak()
        for _ in sys.stdin:
            start = time.perf_counter()
            step([batch])
            step.loss_sum.numpy()
            print(time.perf_counter() - start, flush=True)
        print([built, _peak()], flush=True)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    _train(sys.argv[1], Sizes(**json.loads(sys.argv[2])) if len(sys.argv) > 2 else SIZES)
