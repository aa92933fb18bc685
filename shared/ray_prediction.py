"""Answers to any number of inputs by pipelines on a Ray cluster, written once each.

Inputs are put into files of so many beside the output, and so are the answers until all of them are there: memory
stays as it is however many there are. A file of answers is put in place as a whole. What a worker was at when it was
lost is done again by another, and a run that ended early goes on where it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shared.artifact import MANIFEST
from shared.ray_cluster import Job, cluster, resources, write_whole

logger = logging.getLogger(__name__)

_INPUTS, _ANSWERS = "inputs-{:08d}.jsonl", "answers-{:08d}.jsonl"


def answer_inputs(job: Job, inputs: Iterable[Any], output: Path, *, num_workers: int, portion: int) -> int:
    """Answer `inputs` with one pipeline a worker, and write the answers to `output` in their order; returns how many.

    Memory stays as it is however many inputs there are: they are put into files of `portion` each beside the output,
    and so are the answers until all are there. A run that ended early goes on where it was when it is started again.

    Args:
        job: the command line of `predict`.
        inputs: as they were typed.
        output: a file of JSON lines.
        num_workers: processes, each with a pipeline of its own.
        portion: inputs that a worker is given at a time.

    Raises:
        TypeError: for inputs that are no texts, such as the frames of a film.
        ValueError: for what a pipeline refuses, and where the parts of another run lie in the way.
    """
    parts = Parts(output.with_name(output.name + ".parts"))
    counts = parts.spool(job, inputs, portion)
    left = [number for number in range(len(counts)) if not parts.answers(number).exists()]
    if left:
        with cluster(num_workers):
            _answer_parts(job, parts, left, num_workers)
    parts.join(counts, output)
    return sum(counts)


def _answer_parts(job: Job, parts: Parts, numbers: Sequence[int], num_workers: int) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # importing it sets the level to INFO
    asked = resources(ray, num_workers)
    items = [{"number": number} for number in numbers]
    # A block a part: what is lost with a worker is the part that it was at.
    answered = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Answerer,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_cpus=asked["CPU"],
        num_gpus=asked.get("GPU", 0.0),
        fn_constructor_args=(job, parts.directory),
    )
    for done, row in enumerate(answered.iter_rows(), start=1):
        if row["error"]:
            raise ValueError(str(row["error"]))
        logger.info("answered %d of %d parts", done, len(items))


class Answerer:
    """One pipeline in a process of its own, which answers parts of the inputs; made by Ray Data."""

    def __init__(self, job: Job, directory: Path) -> None:
        self._parts = Parts(directory)
        self._refusal = ""
        try:
            self._predict = job.module().COMMAND.answering(job.arguments)
        except (
            ValueError,
            TypeError,
            FileNotFoundError,
        ) as error:  # a refusal is an answer: Ray would make the actor again, and again
            self._refusal = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer the parts of these numbers, those that are answered already left alone."""
        numbers = [int(number) for number in batch["number"]]
        return {"number": numbers, "error": [self._refusal or self._answered(number) for number in numbers]}

    def _answered(self, number: int) -> str:
        if self._parts.answers(number).exists():
            return ""
        inputs = self._parts.inputs_of(number)
        try:
            answers = self._predict(inputs)
        except (ValueError, TypeError) as error:
            return str(error)
        lines = [{"input": one, **answer.to_dict()} for one, answer in zip(inputs, answers, strict=True)]
        _write_lines(self._parts.answers(number), lines)
        return ""


class Parts:
    """The inputs and answers of one job as files of so many lines each, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def answers(self, number: int) -> Path:
        """Where the answers of a part are, once all of them are there."""
        return self.directory / _ANSWERS.format(number)

    def inputs_of(self, number: int) -> list[str]:
        """The inputs of a part."""
        # Not `splitlines`: texts may hold other line breaks of Unicode.
        lines = (self.directory / _INPUTS.format(number)).read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]

    def spool(self, job: Job, inputs: Iterable[Any], portion: int) -> list[int]:
        """Write the inputs; returns how many each part has.

        Raises:
            ValueError: where the directory has parts of other inputs or another model.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        remembered = {"arguments": list(job.arguments), "portion": portion, "model": _model_digest(job)}
        same = self._remember(remembered)
        counts: list[int] = []
        iterator = iter(inputs)
        while texts := list(itertools.islice(iterator, portion)):
            self._put(len(counts), texts, same=same)
            counts.append(len(texts))
        return counts

    def _remember(self, job: dict[str, Any]) -> bool:
        """Whether the directory holds the parts of this very job already."""
        file = self.directory / "job.json"
        if not file.exists():
            _write_lines(file, [job])
            return False
        if json.loads(file.read_text(encoding="utf-8")) != job:
            raise ValueError(f"{self.directory} holds the parts of another run. Delete it, or choose another --output.")
        return True

    def _put(self, number: int, texts: Sequence[Any], *, same: bool) -> None:
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise TypeError(
                "`--engine ray` takes inputs that are texts or paths of files, not rows of tables or frames of films. "
                "Use --engine local for these."
            )
        file = self.directory / _INPUTS.format(number)
        if same and file.exists() and self.inputs_of(number) != list(texts):
            raise ValueError(f"{self.directory} holds the parts of other inputs. Delete it, or restore the inputs.")
        _write_lines(file, texts)

    def join(self, counts: Sequence[int], output: Path) -> None:
        """Put the answers of all parts together in `output`, in order, and remove the parts."""
        partial = output.with_name(output.name + ".partial")
        with partial.open("wb") as target:
            for number, count in enumerate(counts):
                data = self.answers(number).read_bytes()
                if data.count(b"\n") != count:
                    raise RuntimeError(
                        f"{self.answers(number)} has {data.count(bytes([10]))} answers, expected {count}."
                    )
                target.write(data)
        partial.replace(output)
        shutil.rmtree(self.directory)


def _write_lines(path: Path, values: Iterable[Any]) -> None:
    write_whole(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def _model_digest(job: Job) -> str:
    """What tells one saved pipeline from another under the same name: its manifest has the checksums of its files."""
    named = [value for flag in ("--model", "--preset") for value in _values(job.arguments, flag)]
    manifests = [Path(job.directory, name, MANIFEST) for name in named]
    digests = [hashlib.sha256(manifest.read_bytes()).hexdigest() for manifest in manifests if manifest.is_file()]
    return " ".join(digests)


def _values(arguments: Sequence[str], flag: str) -> list[str]:
    """What follows a flag, as `--flag value` or `--flag=value`."""
    apart = [value for name, value in itertools.pairwise(arguments) if name == flag]
    return apart + [text.partition("=")[2] for text in arguments if text.startswith(f"{flag}=")]
