"""Puts the parts of a run together: models, data, trainer and callbacks."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial

import mlx.core as mx
from rich.console import Console

from trb_mlx.adapters.initial import (
    add_frozen_adapter,
    add_initial_adapter,
    with_initial_lora,
)
from trb_mlx.adapters.mlx_lm import adapter_config
from trb_mlx.backend import kept_awake, prepare_backend
from trb_mlx.bounds import bounded
from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.data.context import fit_split
from trb_mlx.data.held_out import PromptSplit, split_prompts, with_held_out
from trb_mlx.data.rewards import Verifier
from trb_mlx.evaluation.evaluator import Evaluator, resolve_eval, row_rewards
from trb_mlx.files import disk_errors, read_metrics
from trb_mlx.models.loading import LanguageModel
from trb_mlx.models.lora import add_lora, checkpoint_layers
from trb_mlx.models.memory import limited_memory, machine_memory
from trb_mlx.models.pair import Pair, make_pair
from trb_mlx.models.self_teacher import load_models
from trb_mlx.planning.run import check_fits
from trb_mlx.ranks.agreement import agree
from trb_mlx.ranks.group import ALONE, Group, joined
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.rollout.recording import HiddenPlan, plan_hidden
from trb_mlx.rollout.text import response_texts
from trb_mlx.runs.digests import check_digests, write_digests
from trb_mlx.runs.folder import RunFolder, holding_run, write_config
from trb_mlx.text import say
from trb_mlx.training.alike import digests_of, settings_of
from trb_mlx.training.announcement import announcement, next_commands
from trb_mlx.training.callbacks.base import Callback
from trb_mlx.training.callbacks.checkpoints import CheckpointWriter
from trb_mlx.training.callbacks.progress import ProgressPrinter
from trb_mlx.training.callbacks.summary import Summary
from trb_mlx.training.callbacks.tracking import make_reporters
from trb_mlx.training.callbacks.writers import MetricsWriter, SampleWriter
from trb_mlx.training.objective import Objective
from trb_mlx.training.preflight import preflight
from trb_mlx.training.resuming import resume_from, resume_notes
from trb_mlx.training.rollouts import RolloutSampler
from trb_mlx.training.step import Stepper
from trb_mlx.training.target import is_exact
from trb_mlx.training.trainer import Trainer
from trb_mlx.types import Say


def train_run(
    config: Config,
    folder: RunFolder,
    resume: bool,
    console: Console,
    teacher: LanguageModel | None = None,
    force: bool = False,
) -> Config:
    """Train from a config into a run folder, with progress on the console.

    A `teacher` that is loaded already may be given; it is not changed. With `force` a run that
    cannot fit this machine is tried all the same. Returns the config as the run folder keeps it,
    which is rank 0's alone.

    Raises:
        UserError: it does not fit, or something in the config, the models or the data cannot be
            used; a folder made for this run is removed again.
        RunError: the run had to stop.
        Interrupted: a signal came; the state was saved.
    """
    begun = time.perf_counter()
    with joined() as group:
        if group.size > 1:
            agree(group, settings_of(config) | {"--resume": resume})
        console = console if group.leads else Console(quiet=True)
        return _train(config, folder, resume, console, teacher, force, group, begun)


def _train(
    config: Config,
    folder: RunFolder,
    resume: bool,
    console: Console,
    teacher: LanguageModel | None,
    force: bool,
    group: Group,
    begun: float,
) -> Config:
    """A rank's part of a run, whose folder is rank 0's alone."""
    tell = partial(say, console)
    kept = load_config(folder.config) if group.leads and resume and folder.config.exists() else None
    if group.size > 1:
        known = group.share("the run's config", kept and kept.model_dump(mode="json"))
        kept = known and load_config(known)
    config = with_held_out(with_initial_lora(config), kept)
    prepare_backend()
    most = bounded(config.train.vocabulary_mb)
    limits = limited_memory(config.run.memory_limit_gb, tell, group.neighbours)
    awake = kept_awake(config.run.keep_awake)
    holding = holding_run(folder, config, resume) if group.leads else nullcontext()
    with holding, Verifier(strict=group.size > 1) as verifier, most, limits, awake:
        check_fits(config, force, tell, group.neighbours)
        pair = load_run_pair(config, teacher)
        for scorer in (pair.student, pair.teacher):
            make_decoder(scorer)  # refuses a model that is wrong without a cache, or with one
        config = with_chat_template(config, pair)
        models = pair.student.model, pair.teacher.model
        prompts = split_prompts(config, models[0].tokenizer, tell, models[1].tokenizer)
        if resume and group.leads:
            check_digests(folder, config, vars(prompts), tell)
        contexts = [model.context for model in models]
        fitted_config, fitted_prompts = fit_split(config, prompts, contexts, tell)
        hidden = hidden_plan(fitted_config, pair)
        trainer = make_trainer(fitted_config, pair, fitted_prompts, verifier, hidden.keep, group)
        if resume:
            resume_from(folder, trainer)
        if group.size > 1:
            agree(group, digests_of(pair, fitted_prompts, hidden.keep))
            tell(group.describe())
            if config.lora.dropout and not config.train.deterministic:
                tell(
                    "note: the masks of lora.dropout are not those of a run in one process "
                    "(train.deterministic makes them so)"
                )
        if not group.leads:
            trainer.run()
            return config
        summary = Summary(begun, read_metrics(folder.metrics) if trainer.step else ())
        trainer.callbacks = make_callbacks(trainer, folder, pair, summary, console)
        for line in announcement(config, folder, pair, trainer, hidden.reason):
            tell(line)
        for line in preflight(pair, fitted_prompts.train[0]):
            tell(line)
        if trainer.step:
            for line in resume_notes(folder, config, trainer.step):
                tell(line)
        with disk_errors("config.yaml"):
            if not resume or not folder.data.exists():
                write_digests(folder, config, prompts)
            write_config(folder, config)
        with disk_errors("the run's files"):
            trainer.run()
        for line in [*summary.lines(), *next_commands(config, folder, pair.student.model)]:
            tell(line, wrap=False)
        return config


def load_run_pair(config: Config, teacher: LanguageModel | None = None) -> Pair:
    """Both models of a run, before the adapters that it trains.

    Raises:
        UserError: a model or a start adapter cannot be used, or the two do not go together.
    """
    pair = make_pair(*load_models(config, teacher))
    if config.teacher.adapter == "start":
        add_frozen_adapter(pair.teacher.model.module, with_initial_lora(config))
    return pair


def look_ahead(config: Config, say: Say) -> None:
    """The preflight of a run that is not begun: loads both models and its prompts.

    Raises:
        UserError: as `train_run`.
    """
    prepare_backend()
    pair = load_run_pair(config)
    config = with_chat_template(with_held_out(config, None), pair)
    models = pair.student.model, pair.teacher.model
    prompts = split_prompts(config, models[0].tokenizer, say, models[1].tokenizer)
    _, fitted = fit_split(config, prompts, [model.context for model in models], say)
    for line in preflight(pair, fitted.train[0]):
        say(line)


def with_chat_template(config: Config, pair: Pair) -> Config:
    """The config with the teacher's chat template where the student's tokenizer has none."""
    student, teacher = pair.student.model.tokenizer, pair.teacher.model.tokenizer
    prompt = config.prompt
    if prompt.format == "plain" or prompt.chat_template or student.has_chat_template:
        return config
    if not teacher.has_chat_template or not isinstance(teacher.chat_template, str):
        return config
    borrowed = prompt.model_copy(update={"chat_template": teacher.chat_template})
    return config.model_copy(update={"prompt": borrowed})


def hidden_plan(config: Config, pair: Pair) -> HiddenPlan:
    """Whether the teacher's hidden states are kept: only a loss of the whole vocabulary asks."""
    if not is_exact(config.loss) or pair.teacher.split is None:
        return HiddenPlan(False, "")
    hidden = pair.teacher.hidden(mx.array([[0]]))
    rollouts = config.train.prompts_per_step * config.rollout.rollouts_per_prompt
    return plan_hidden(
        config.loss.keep_hidden,
        rollouts * config.rollout.max_tokens,
        hidden.shape[-1],
        hidden.dtype.size,
        machine_memory(),
    )


def make_trainer(
    config: Config,
    pair: Pair,
    prompts: PromptSplit,
    verifier: Verifier,
    keep_hidden: bool,
    group: Group = ALONE,
) -> Trainer:
    """The trainer of a run, with fresh adapters in the student and no callbacks yet."""
    module = pair.student.model.module
    if config.student.adapter is None:
        add_lora(module, config.lora, config.train.seed)
    else:
        add_initial_adapter(module, config)
    if config.train.grad_checkpoint:
        checkpoint_layers(module)
    stepper = Stepper(module, Objective(config.loss, pair, config.target), config.train, group)
    evaluation = resolve_eval(config.eval, config.eval.max_tokens or config.rollout.max_tokens)
    rows = (config.rollout.batch_size, config.train.micro_batch_size)
    return Trainer(
        config,
        RolloutSampler(config, pair, prompts.train, keep_hidden, group),
        stepper,
        Evaluator(pair, prompts.eval, evaluation, verifier, config.train.seed, rows, group),
        lambda rollout: row_rewards(pair.student, rollout, verifier, group),
        group=group,
    )


def make_callbacks(
    trainer: Trainer, folder: RunFolder, pair: Pair, summary: Summary, console: Console
) -> list[Callback]:
    """Everything that listens to a run."""
    config, run = trainer.config, trainer.config.run
    student, teacher = pair.student.model, pair.teacher.model
    stops = sorted({*student.stop_ids, *teacher.stop_ids})
    details = adapter_config(student.module, config.lora, student.name, stops)
    return [
        MetricsWriter(folder.metrics),
        SampleWriter(
            folder.samples,
            run.sample_every,
            run.samples,
            lambda rollout: response_texts(pair.student, rollout),
        ),
        CheckpointWriter(trainer, folder, details),
        summary,
        ProgressPrinter(console, config.train.steps, run.report_every),
        *make_reporters(config, folder.path),
    ]
