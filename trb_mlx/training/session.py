"""Puts the parts of a run together and attaches the hooks to the trainer's events."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console

from trb_mlx.adapters.mlx_lm import adapter_config
from trb_mlx.adapters.starting import start_from, with_adapter
from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.data.context import fit_split
from trb_mlx.data.formats import fill_plain
from trb_mlx.data.held_out import PromptSplit, split_prompts, with_held_out
from trb_mlx.data.rewards import Verifier
from trb_mlx.evaluation.evaluator import Evaluator, answer_rewards, as_drawn
from trb_mlx.files import disk_errors, read_metrics
from trb_mlx.method import describe_method, unread_keys
from trb_mlx.models.loading import LanguageModel, load_model, prepare_backend, resolve
from trb_mlx.models.lora import add_lora, checkpoint_layers
from trb_mlx.models.memory import machine_memory
from trb_mlx.models.pair import Pair, make_pair
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.cache_trial import can_trim, make_decoder
from trb_mlx.rollout.recording import HiddenPlan, plan_hidden
from trb_mlx.rollout.text import response_texts
from trb_mlx.runs.checkpoint import Progress
from trb_mlx.runs.data import check_digests, keep_digests
from trb_mlx.runs.folder import RunFolder, holding_run, write_config
from trb_mlx.text import say
from trb_mlx.training.callbacks.checkpoints import Keeper
from trb_mlx.training.callbacks.progress import Ledger, ProgressHook
from trb_mlx.training.callbacks.tracking import make_reporters
from trb_mlx.training.callbacks.writers import MetricsWriter, SampleWriter
from trb_mlx.training.objective import Objective
from trb_mlx.training.resuming import notes as resume_notes
from trb_mlx.training.resuming import take_up
from trb_mlx.training.step import Stepper
from trb_mlx.training.target import is_exact
from trb_mlx.training.trainer import Cadence, Hook, Trainer, Work
from trb_mlx.training.work import TrainingWork
from trb_mlx.types import Metrics


def train_run(
    config: Config,
    folder: RunFolder,
    resume: bool,
    console: Console,
    teacher: LanguageModel | None = None,
) -> None:
    """Train from a config into a run folder, with progress on the console.

    A `teacher` that is loaded already may be given; it is not changed.

    Raises:
        UserError: something in the config, the models or the data cannot be used; a folder
            made for this run is removed again.
        RunError: the run had to stop.
        Interrupted: a signal came; the state was saved.
    """
    begun = time.perf_counter()
    kept = load_config(str(folder.config)) if resume and folder.config.exists() else None
    config = with_held_out(with_adapter(config), kept)
    with holding_run(folder, config, resume):
        prepare_backend()
        pair = make_pair(load_model(config.student), teacher or load_model(config.teacher))
        for scorer in (pair.student, pair.teacher):
            make_decoder(scorer)  # refuses a model that is wrong without a cache, or with one
        config = with_template(config, pair)
        tell = partial(say, console)
        prompts = split_prompts(config, pair.student.model.tokenizer, tell)
        if resume:
            check_digests(folder, config, vars(prompts), tell)
        contexts = (pair.student.model.context, pair.teacher.model.context)
        fitted, within = fit_split(config, prompts, contexts, tell)
        with Verifier() as verifier:
            session = _Session(fitted, folder, pair, within, verifier)
            if resume:
                session.resume()
            hooks = session.hooks(console)
            _announce(config, session, console)
            with disk_errors("config.yaml"):
                if not resume or not folder.data.exists():
                    keep_digests(folder, config, prompts)
                write_config(folder, config)
            session.run(hooks, console, time.perf_counter() - begun)


def with_template(config: Config, pair: Pair) -> Config:
    """The config with the teacher's chat template where the student's tokenizer has none."""
    ours, theirs = pair.student.model.tokenizer, pair.teacher.model.tokenizer
    prompt = config.prompt
    if prompt.format == "plain" or prompt.chat_template or ours.has_chat_template:
        return config
    if not theirs.has_chat_template or not isinstance(theirs.chat_template, str):
        return config
    borrowed = prompt.model_copy(update={"chat_template": theirs.chat_template})
    return config.model_copy(update={"prompt": borrowed})


class _Session:
    """One run's parts, built once."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        pair: Pair,
        prompts: PromptSplit,
        verifier: Verifier,
    ) -> None:
        self.config = config
        self.folder = folder
        self.pair = pair
        module = pair.student.model.module
        if config.student.adapter is None:
            add_lora(module, config.lora, config.train.seed)
        else:
            start_from(module, config)
        if config.train.grad_checkpoint:
            checkpoint_layers(module)
        objective = Objective(config.loss, pair, config.target)
        self.stepper = Stepper(module, objective, config.train)
        self.plain = objective.unfused
        self.hidden = _hidden_plan(config, pair)
        self.work = TrainingWork(
            config,
            pair,
            prompts.train,
            make_behavior(config.behavior),
            self.stepper,
            lambda rollout: answer_rewards(pair.student, rollout, verifier),
            self.hidden.keep,
        )
        evaluation = as_drawn(config.eval, config.eval.max_tokens or config.rollout.max_tokens)
        rows = (config.rollout.batch_size, config.train.micro_batch_size)
        self.evaluator = Evaluator(
            pair, prompts.eval, evaluation, verifier, config.train.seed, rows
        )
        self.ledger = Ledger()
        self.trainer = self._trainer([])

    def _trainer(self, hooks: Sequence[Hook]) -> Trainer:
        train = self.config.train
        cadence = Cadence(
            train.steps, self.config.eval.every, self.config.run.save_every, train.max_bad_steps
        )
        work = Work(self.work.train, self._evaluate, self.work.rewind)
        return Trainer(work, cadence, hooks)

    def resume(self) -> None:
        """Take up the newest checkpoint, or begin again where a run has none yet."""
        progress = take_up(self.folder, self.config, self.stepper, self.work)
        if progress.step:
            self.ledger.recall(read_metrics(self.folder.metrics))
        self.trainer.step = progress.step
        # A run that was stopped for its bad steps is resumed to get past them.
        stopped = progress.bad_steps >= self.config.train.max_bad_steps
        self.trainer.bad_steps = 0 if stopped else progress.bad_steps

    def run(self, hooks: Sequence[Hook], console: Console, loading: float) -> None:
        """Train to the end and print the summary."""
        self.trainer.hooks = hooks
        with disk_errors("the run's files"):
            self.trainer.run()
        commands = next_commands(self.config, self.folder, self.pair.student.model)
        for line in [*self.ledger.summary(loading), *commands]:
            say(console, line, wrap=False)

    def hooks(self, console: Console) -> list[Hook]:
        """Everything that listens to the run."""
        run = self.config.run
        hooks: list[Hook] = [
            MetricsWriter(self.folder.metrics),
            SampleWriter(
                self.folder.samples,
                run.sample_every,
                run.samples,
                lambda rollout: response_texts(self.pair.student, rollout),
            ),
            self._keeper(),
            self.ledger,
            ProgressHook(console, self.config.train.steps, run.report_every),
        ]
        return [*hooks, *make_reporters(self.config, self.folder.path)]

    def _keeper(self) -> Keeper:
        student, teacher = self.pair.student.model, self.pair.teacher.model
        stops = {*student.stop_ids, *teacher.stop_ids}
        details = adapter_config(student.module, self.config.lora, student.name, sorted(stops))
        return Keeper(
            self.stepper,
            self._progress,
            self.folder.adapter_path,
            self.folder.checkpoints,
            details,
            self.config.run.keep_checkpoints,
        )

    def _progress(self, step: int) -> Progress:
        return Progress(step, self.trainer.bad_steps, self.stepper.skipped, self.work.drafting)

    def _evaluate(self, step: int) -> Metrics:
        begun = time.perf_counter()
        metrics = self.evaluator.student()
        if step == 0 and self.config.eval.teacher:
            metrics |= self.evaluator.teacher()
        return metrics | {"time/eval_s": time.perf_counter() - begun}


def _hidden_plan(config: Config, pair: Pair) -> HiddenPlan:
    """Whether the teacher's hidden states are kept: only a loss of the whole vocabulary asks."""
    if not is_exact(config.loss) or pair.teacher.split is None:
        return HiddenPlan(False, "")
    hidden = pair.teacher.hidden(mx.array([[0]]))
    tokens = (
        config.train.prompts_per_step
        * config.rollout.rollouts_per_prompt
        * config.rollout.max_tokens
    )
    width, size = hidden.shape[-1], hidden.dtype.size
    return plan_hidden(config.loss.keep_hidden, tokens, width, size, machine_memory())


def _announce(config: Config, session: _Session, console: Console) -> None:
    behavior, steps = config.behavior, config.train.steps
    say(
        console,
        f"{config.student.model} ← {config.teacher.model}: {steps} steps of "
        f"{config.train.prompts_per_step} prompts × {config.rollout.rollouts_per_prompt} rollouts, "
        f"{describe_method(config)}, into {session.folder.path}",
    )
    if behavior.kind == "trb" and behavior.warmup_steps > steps:
        say(
            console,
            f"warning: behavior.warmup_steps {behavior.warmup_steps} is longer than the run "
            f"(train.steps {steps}): the budget will not reach 0.",
        )
    for sentence in filter(None, [*unread_keys(config), session.pair.student.model.note]):
        say(console, f"note: {sentence}")
    for reason in (session.hidden.reason, _why_no_drafts(config, session)):
        if reason:
            say(console, reason)
    if session.plain is not None:
        say(console, f"{session.plain}, so the logits of a whole micro-batch are held at once")
    if session.trainer.step:
        for note in resume_notes(session.folder, config, session.trainer.step):
            say(console, note)


def _why_no_drafts(config: Config, session: _Session) -> str:
    """Which model keeps blended rollouts from being drafted in blocks, if one does."""
    if not session.work.behavior.needs_teacher(0) or config.rollout.draft_length == 1:
        return ""
    scorers = {"student": session.pair.student, "teacher": session.pair.teacher}
    stuck = [f"{role} {s.model.name}" for role, s in scorers.items() if not can_trim(s)]
    if not stuck:
        return ""
    return f"{' and '.join(stuck)} cannot take tokens back, so the teacher is asked at every token"


def next_commands(config: Config, folder: RunFolder, student: LanguageModel) -> list[str]:
    """The commands that a user is likely to type next."""
    run = str(folder.path)
    commands = [
        ["trb-mlx", "generate", run, "--prompt", "…"],
        ["trb-mlx", "eval", run],
        ["trb-mlx", "report", run],
        ["trb-mlx", "export", run, "--to", "peft"],
    ]
    model = resolve(config.student.model)
    # mlx-lm would load the base as it was before rounding, reads no GGUF, and computes some models
    # otherwise.
    if config.student.quantize is None and not Path(model).is_file() and student.note is None:
        prompt = _mlx_lm_prompt(config, student.tokenizer)
        start = ["python", "-m", "mlx_lm", "generate", "--model", model]
        commands.append([*start, "--adapter-path", str(folder.adapter_path), "--prompt", prompt])
    return ["next:", *(f"  {shlex.join(command)}" for command in commands)]


def _mlx_lm_prompt(config: Config, tokenizer: Any) -> str:
    """What mlx-lm must be given: without a chat template it reads a prompt as it stands."""
    if tokenizer.has_chat_template or config.prompt.chat_template is not None:
        return "…"
    text = fill_plain(config.prompt.plain, "…", config.prompt.system or "")
    return text.replace("\n", "\\n")  # which mlx-lm takes for a line's end
