"""The frame that the three domains share: verbs, configs, data, training, files.

Light names are imported at once; `load_pipeline` and the rest bring in TensorFlow only when they are used.
"""

from shared.channel import WorkerLostError
from shared.config import Config
from shared.examples import BadExampleError, BadRecord, Examples
from shared.pipeline import History, Metrics, NotFittedError, Pipeline, TrainingInterrupted, load_pipeline
from shared.runtime import RuntimeConfig
from shared.training_config import TrainingConfig
from shared.vocabulary import Vocabulary

__version__ = "0.1.0"

__all__ = [
    "BadExampleError",
    "BadRecord",
    "Config",
    "Examples",
    "History",
    "Metrics",
    "NotFittedError",
    "Pipeline",
    "RuntimeConfig",
    "TrainingConfig",
    "TrainingInterrupted",
    "Vocabulary",
    "WorkerLostError",
    "load_pipeline",
]
