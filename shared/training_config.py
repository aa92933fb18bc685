"""How `fit` trains: everything that takes effect there and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.config import Config, option

OptimizerName = Literal["adamw", "sgd", "adafactor", "lion"]
ScheduleName = Literal["cosine", "linear", "constant", "one_cycle", "inverse_sqrt"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Config):
    """Choices of one training run; the same for every task."""

    epochs: int = option(10, "passes over the training set", minimum=1)
    batch_size: int = option(32, "examples per step and replica", minimum=1)
    batch_tokens: int = option(
        0,
        "most tokens per step and replica, padding included, in place of `batch_size`; 0 is off (texts)",
        minimum=0,
        unit="tokens",
    )
    optimizer: OptimizerName = option("adamw", "update rule")
    learning_rate: float = option(1e-3, "highest learning rate of the schedule", minimum=0.0)
    schedule: ScheduleName = option("cosine", "course of the learning rate after warm-up")
    warmup: float = option(0.05, "share of all steps in which the learning rate rises", minimum=0.0, maximum=1.0)
    final_rate: float = option(0.0, "last learning rate, as a share of the highest", minimum=0.0, maximum=1.0)
    momentum: float = option(0.9, "momentum of sgd (Nesterov)", minimum=0.0, maximum=1.0)
    weight_decay: float = option(
        0.01, "decoupled decay per unit of learning rate; biases and norms are spared", minimum=0.0
    )
    clip_norm: float = option(1.0, "largest global gradient norm; 0 switches clipping off", minimum=0.0)
    accumulation_steps: int = option(1, "batches whose gradients are averaged into one step", minimum=1)
    gradient_checkpointing: bool = option(
        False, "compute insides of transformer layers again in the backward pass: less memory, more time"
    )
    ema_decay: float = option(
        0.0, "decay per step of averaged weights, used for validation and kept; 0 is off", minimum=0.0, maximum=1.0
    )
    label_smoothing: float = option(
        0.0, "share of the target spread over all classes, where it applies", minimum=0.0, maximum=1.0
    )
    freeze_epochs: int = option(0, "first epochs that train the new head only (fine-tuning)", minimum=0)
    freeze_groups: int = option(
        0, "lowest of the six layer groups that stay as they are (fine-tuning)", minimum=0, maximum=6
    )
    freeze_norms: bool = option(False, "keep pretrained batch normalisation as it is (fine-tuning)")
    layer_decay: float = option(
        1.0, "factor on the learning rate from each layer group to the one below", minimum=0.0, maximum=1.0
    )
    patience: int = option(0, "epochs without a better first metric before training stops; 0 is off", minimum=0)
    checkpoint_minutes: float = option(10.0, "minutes between saved training states; 0 is off", minimum=0.0, unit="min")
    checkpoint_steps: int = option(0, "steps between saved training states; 0 is off", minimum=0)
    cache_gib: float = option(2.0, "memory for decoded examples", minimum=0.0, unit="GiB")
    max_bad_share: float = option(0.01, "share of unreadable examples that is tolerated", minimum=0.0, maximum=1.0)
    seed: int = option(0, "seed of the data order and of augmentation", minimum=0, maximum=2**32 - 1)
