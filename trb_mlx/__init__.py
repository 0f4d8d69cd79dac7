"""On-policy distillation with trust-region behavior blending, on MLX."""

from __future__ import annotations

import sys
from pathlib import Path

__version__ = "0.2.0"

try:
    import mlx.core  # noqa: F401  (an early, readable failure where no back end is installed)
except ImportError as error:
    _SENTENCE = (
        "trb-mlx found no MLX back end: install it with the extra `cpu` (a Mac, or Linux without "
        'a GPU: pip install ".[cpu]") or `cuda13` (Linux with CUDA 13: pip install ".[cuda13]").'
    )
    if Path(sys.argv[0]).name == "trb-mlx":
        sys.exit(_SENTENCE)  # the console user gets the sentence, not a traceback
    raise ImportError(_SENTENCE) from error
