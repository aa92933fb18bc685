"""The state of a training run on disk: written atomically, read back bit for bit.

A checkpoint directory holds `state-<step>/` (arrays as safetensors, the rest as JSON) and `best-<epoch>.safetensors`;
a second state of the same step is called `state-<step>.1/`.
A state is written under another name and renamed when complete, so what carries the name is always whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

_STATE = "state-"
_BEST = "best-"
_PARTIAL = ".partial"
_KEEP = 2


@dataclass(frozen=True)
class TrainingState:
    """Everything that a run needs to go on: `arrays` by name, and `values` that are plain JSON."""

    step: int
    arrays: dict[str, np.ndarray]
    values: dict[str, Any]


class CheckpointDirectory:
    """Training states of one run in `path`; the newest two are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def latest(self) -> TrainingState | None:
        """The newest complete state; None where there is none."""
        states = self._states()
        if not states:
            return None
        directory = states[-1]
        values = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        return TrainingState(_order(directory)[0], load_file(directory / "arrays.safetensors"), values)

    def latest_values(self) -> dict[str, Any] | None:
        """The values of the newest complete state, its arrays left unread; None where there is none."""
        states = self._states()
        if not states:
            return None
        values: dict[str, Any] = json.loads((states[-1] / "state.json").read_text(encoding="utf-8"))
        return values

    def write(self, state: TrainingState) -> None:
        """Add `state`, then remove those older than the newest two."""
        self.path.mkdir(parents=True, exist_ok=True)
        target = self._free_name(state.step)
        partial = target.with_name(target.name + _PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file(state.arrays, partial / "arrays.safetensors")
        (partial / "state.json").write_text(json.dumps(state.values), encoding="utf-8")
        for file in (*partial.iterdir(), partial):
            _sync(file)
        partial.rename(target)
        _sync(self.path)
        self._prune()

    def write_best(self, epoch: int, weights: Sequence[np.ndarray]) -> str:
        """Keep `weights` as the best so far, under a name of their own; returns the name.

        Older best weights stay until a state is written that no longer refers to them.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.path / f"{_BEST}{epoch:05d}.safetensors"
        partial = target.with_name(target.name + _PARTIAL)
        save_file(dict(_numbered(weights)), partial)
        _sync(partial)
        partial.replace(target)
        return target.name

    def read_best(self, name: str) -> list[np.ndarray]:
        """The weights that `write_best` called `name`."""
        arrays = load_file(self.path / name)
        return [arrays[key] for key in sorted(arrays)]

    def _states(self) -> list[Path]:
        if not self.path.is_dir():
            return []
        return sorted((p for p in self.path.glob(f"{_STATE}*") if not p.name.endswith(_PARTIAL)), key=_order)

    def _free_name(self, step: int) -> Path:
        """A name that sorts after those of earlier states: the end of an epoch is saved beside its last step."""
        same_step = [again for number, again in map(_order, self._states()) if number == step]
        return self.path / (f"{_STATE}{step:09d}" + (f".{same_step[-1] + 1}" if same_step else ""))

    def _prune(self) -> None:
        states = self._states()
        for old in (*states[:-_KEEP], *self.path.glob(f"{_STATE}*{_PARTIAL}")):
            shutil.rmtree(old)
        values = [json.loads((s / "state.json").read_text(encoding="utf-8")) for s in states[-_KEEP:]]
        named = {value.get("best_file") for value in values}
        for best in self.path.glob(f"{_BEST}*"):
            if best.name not in named:
                best.unlink()


def _numbered(arrays: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    # Not `ascontiguousarray`: it would make vectors of scalars.
    return [(f"{i:05d}", np.array(array, order="C")) for i, array in enumerate(arrays)]


def pack(groups: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """Groups of arrays under one flat naming: `<group>/<number>`."""
    return {f"{group}/{key}": a for group, arrays in groups.items() for key, a in _numbered(arrays)}


def unpack(arrays: Mapping[str, np.ndarray], group: str) -> list[np.ndarray]:
    """The arrays of one group, in their order."""
    return [arrays[key] for key in sorted(arrays) if key.startswith(f"{group}/")]


def _order(directory: Path) -> tuple[int, int]:
    """Step of a state, and how many states of that step were before it."""
    step, _, again = directory.name.removeprefix(_STATE).partition(".")
    return int(step), int(again or 0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
