"""Whether MLX can compute here at all."""

from __future__ import annotations

from importlib import import_module


def require_backend() -> None:
    """Import MLX's back end, or say how to install one.

    Raises:
        ImportError: there is none; one sentence for a person.
    """
    try:
        import_module("mlx.core")
    except ImportError as error:
        raise ImportError(
            "trb-mlx found no MLX back end: install it with the extra `cpu` (a Mac, or Linux "
            'without a GPU: pip install ".[cpu]") or `cuda13` (Linux with CUDA 13: pip install '
            '".[cuda13]").'
        ) from error
