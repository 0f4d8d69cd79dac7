"""A plan of a run: its memory and its time, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass

from trb_mlx.config import Config
from trb_mlx.models.loading import Outline, outline_model
from trb_mlx.planning.machine import Machine
from trb_mlx.planning.memory import MemoryModel, MemoryPlan, ModelShape, adapter_bytes, shape_of


@dataclass(frozen=True)
class Outlines:
    """Both models of a run, of which only headers were read."""

    student: Outline
    teacher: Outline

    @classmethod
    def of(cls, config: Config) -> Outlines:
        """The models that a config names.

        Raises:
            UserError: one cannot be found or read.
        """
        student = outline_model(config.student)
        teacher = student if config.is_self_taught else outline_model(config.teacher)
        return cls(student, teacher)


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        config: what is planned.
        machine: for which machine.
        memory: by phase.
        student, teacher: what counts of both models.
    """

    config: Config
    machine: Machine
    memory: MemoryPlan
    student: ModelShape
    teacher: ModelShape

    @property
    def fits(self) -> bool:
        """Whether the highest peak is within the machine's limit."""
        return self.memory.peak_bytes <= self.machine.limit_bytes


def plan_config(config: Config, machine: Machine, outlines: Outlines | None = None) -> Plan:
    """Plan a run; `outlines` are its models where they were read already.

    Raises:
        UserError: a model cannot be found or read.
    """
    models = outlines or Outlines.of(config)
    student, teacher = shape_of(models.student), shape_of(models.teacher)
    adapters = adapter_bytes(models.student.module, config.lora)
    memory = MemoryModel(config, student, teacher, adapters, machine).plan()
    return Plan(config, machine, memory, student, teacher)
