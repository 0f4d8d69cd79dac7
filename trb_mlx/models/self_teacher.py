"""A model as its own teacher: another tree of the same arrays, which adapters do not reach."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import mlx.nn as nn

from trb_mlx.config import Config
from trb_mlx.models.loading import LanguageModel, load_model


def load_models(
    config: Config, teacher: LanguageModel | None = None
) -> tuple[LanguageModel, LanguageModel]:
    """Student and teacher of a run; where both are one model its weights are held once.

    The student must not have adapters yet. A `teacher` that is loaded already may be given.

    Raises:
        UserError: a model cannot be loaded.
    """
    student = load_model(config.student)
    if teacher is None:
        teacher = self_teacher(student) if config.is_self_taught else load_model(config.teacher)
    return student, teacher


def self_teacher(student: LanguageModel) -> LanguageModel:
    """A model beside itself: its modules anew, its arrays, packed ones too, shared.

    Adapters that are put on one, updates and layers that are checkpointed do not show in the other.
    """
    return replace(student, module=copied_module(student.module))


def copied_module(module: nn.Module) -> nn.Module:
    """Another tree of modules over the same arrays."""
    copied: nn.Module = _copied(module, {})
    return copied


def _copied(value: Any, done: dict[int, nn.Module]) -> Any:
    """Modules, lists and mappings anew; whatever else they hold is shared."""
    if isinstance(value, nn.Module):
        if id(value) not in done:
            new = done[id(value)] = copy.copy(value)
            new._no_grad = set(value._no_grad)
            for name, inner in value.items():
                new[name] = _copied(inner, done)
        return done[id(value)]
    if isinstance(value, dict):
        return {name: _copied(inner, done) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner, done) for inner in value)
    return value
