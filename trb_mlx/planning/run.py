"""A plan of a run: its memory by phase, from headers alone."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from trb_mlx.config import Config, ModelConfig
from trb_mlx.errors import UserError, one_line
from trb_mlx.models.loading import Outline, outline_model
from trb_mlx.planning.headers import header_folder
from trb_mlx.planning.machine import Machine, size, this_machine
from trb_mlx.planning.memory import MemoryModel, MemoryPlan
from trb_mlx.planning.shapes import ModelShape, adapter_bytes, shape_of
from trb_mlx.types import Say

PHASES = {
    "load": "loading",
    "rollout": "drawing rollouts",
    "update": "the update",
    "eval": "evaluations",
}


class PlanError(UserError):
    """A model may run, and cannot be planned."""


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        config: what is planned.
        machine: for which machine.
        memory: by phase.
        student, teacher: what counts of both models.
        download_bytes: what is still to be downloaded of them.
    """

    config: Config
    machine: Machine
    memory: MemoryPlan
    student: ModelShape
    teacher: ModelShape
    download_bytes: int = 0

    @property
    def fits(self) -> bool:
        """Whether the highest peak is within the machine's limit."""
        return self.memory.peak_bytes <= self.machine.limit_bytes

    def sentence(self) -> str:
        """Whether it fits, how high it goes and where."""
        phases = self.memory.phases
        worst = max(phases, key=lambda name: phases[name].peak_bytes)
        fits = "fits" if self.fits else "does not fit"
        peak, limit = size(self.memory.peak_bytes), size(self.machine.limit_bytes)
        return f"{fits} {self.machine.name}: at most {peak} of {limit}, in {PHASES[worst]}"


class Planner:
    """Plans runs; the headers of a model are read once, and kept while it is open."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._place = tempfile.TemporaryDirectory(prefix="trb-mlx-headers-")
        self._folders: dict[str, tuple[Path | None, int]] = {}
        self._models: dict[str, tuple[Outline, ModelShape]] = {}
        self._adapters: dict[str, int] = {}

    def __enter__(self) -> Planner:
        """The planner itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove what was read."""
        self._place.cleanup()

    def plan(self, config: Config, machine: Machine) -> Plan:
        """Plan a run.

        Raises:
            UserError: a model cannot be found or read.
        """
        outline, student = self._model(config.student)
        teacher = student if config.is_self_taught else self._model(config.teacher)[1]
        key = outline.name + config.student.model_dump_json() + config.lora.model_dump_json()
        if key not in self._adapters:
            self._adapters[key] = adapter_bytes(outline.module, config.lora)
        memory = MemoryModel(config, student, teacher, self._adapters[key], machine).plan()
        names = {config.student.model, config.teacher.model}
        left = sum(self._folder(section)[1] for section in self._sections(config, names))
        return Plan(config, machine, memory, student, teacher, left)

    def _sections(self, config: Config, names: set[str]) -> list[ModelConfig]:
        """One section a model of another name."""
        both = {config.teacher.model: config.teacher, config.student.model: config.student}
        return [both[name] for name in names]

    def _folder(self, config: ModelConfig) -> tuple[Path | None, int]:
        key = f"{config.model}@{config.revision}"
        if key not in self._folders:
            place = Path(self._place.name) / str(len(self._folders))
            self._folders[key] = header_folder(config, place)
        return self._folders[key]

    def _model(self, config: ModelConfig) -> tuple[Outline, ModelShape]:
        plain = ModelConfig(**{key: getattr(config, key) for key in ModelConfig.model_fields})
        key = plain.model_dump_json()
        if key not in self._models:
            try:
                outline = outline_model(plain, self._folder(plain)[0])
                self._models[key] = outline, shape_of(outline)
            except UserError:
                raise
            except Exception as error:  # a model's own code, with arrays that are never evaluated
                raise PlanError(
                    f"model {config.model} cannot be planned ({one_line(str(error))})."
                ) from error
        return self._models[key]


def plan_config(config: Config, machine: Machine) -> Plan:
    """Plan one run.

    Raises:
        UserError: a model cannot be found or read.
    """
    with Planner() as planner:
        return planner.plan(config, machine)


def check_fits(config: Config, force: bool, say: Say, processes: int = 1) -> None:
    """Say what a run takes of this machine, and refuse one that cannot fit.

    So many `processes` of the run are on this machine.

    Raises:
        UserError: it does not fit and there is no `force`, or a model cannot be found or read.
    """
    try:
        plan = plan_config(config, this_machine(config.run.memory_limit_gb, processes))
    except PlanError as error:
        say(f"plan: {str(error).removesuffix('.')}")
        return
    say(f"plan: {plan.sentence()}")
    if not plan.fits and not force:
        raise UserError(
            f"this run {plan.sentence()}; `trb-mlx plan` with the same arguments says what to "
            "lower, --fit FILE writes the config that fits, and --force runs it all the same."
        )
