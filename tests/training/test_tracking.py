"""Metrics passed on to other services."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from report.synthetic import PAIR

from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.errors import UserError
from trb_mlx.training.callbacks.tracking import Reporter, make_reporters
from trb_mlx.types import StepResult

STEPS = [
    StepResult(0, {"eval/pass@1": 0.1}),
    StepResult(1, {"reverse_kl": 1.5}),
    StepResult(2, {"reverse_kl": 0.5, "eval/reverse_kl": 0.4}),
]


def config(report_to: str | None) -> Config:
    return load_config(None, [*PAIR, ("run.report_to", report_to), ("run.project_name", "ours")])


class FakeTrackio(types.ModuleType):
    """Stands in for the package: what it was called with, in order."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.calls: list[tuple] = []

    def init(self, **kwargs: object) -> FakeTrackio:
        self.calls.append(("init", kwargs))
        return self

    def log(self, metrics: dict, step: int) -> None:
        self.calls.append(("log", step, metrics))

    def finish(self) -> None:
        self.calls.append(("finish",))


def test_trackio_gets_every_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    (reporter,) = make_reporters(config("trackio"), tmp_path / "small")
    for result in STEPS:
        reporter.on_step(result)
    reporter.on_end(2)
    kind, begun = fake.calls[0]
    assert kind == "init"
    assert (begun["project"], begun["name"], begun["resume"]) == ("ours", "small", "allow")
    assert begun["config"]["student"]["model"] == "us/student"
    assert fake.calls[1:] == [
        ("log", 0, {"eval/pass@1": 0.1}),
        ("log", 1, {"reverse_kl": 1.5}),
        ("log", 2, {"reverse_kl": 0.5}),
        ("log", 2, {"eval/reverse_kl": 0.4}),
        ("finish",),
    ]


def test_trackio_takes_what_we_give_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real package, where it is installed: two runs of the same name go on as one."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "logs"))
    pytest.importorskip("trackio")
    for _ in range(2):
        (reporter,) = make_reporters(config("trackio"), tmp_path / "small")
        for result in STEPS:
            reporter.on_step(result)
        reporter.on_end(2)


@pytest.mark.parametrize("name", ["wandb", "swanlab", "trackio"])
def test_a_service_that_is_not_installed(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(f"mlx_lm.tuner.callbacks.{name}", None, raising=False)
    with pytest.raises(UserError, match=rf"{name} is not installed \(pip install {name}\)"):
        make_reporters(config(name), tmp_path)


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run.report_to wandbb; did you mean wandb\?"):
        make_reporters(config("wandbb"), tmp_path)
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr(fake, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("no\nkey.")))
    with pytest.raises(UserError, match=r"run.report_to trackio: no key\.$"):
        make_reporters(config("trackio"), tmp_path)


def test_several_services_and_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "trackio", FakeTrackio())
    assert len(make_reporters(config("trackio, trackio"), tmp_path)) == 2
    assert make_reporters(config(None), tmp_path) == []


def test_callbacks_get_training_and_evaluation_apart() -> None:
    seen: list[tuple[str, dict]] = []

    class Callback:
        def on_train_loss_report(self, info: dict) -> None:
            seen.append(("train", info))

        def on_val_loss_report(self, info: dict) -> None:
            seen.append(("val", info))

    reporter = Reporter(Callback())
    for result in STEPS:
        reporter.on_step(result)
    assert [kind for kind, _ in seen] == ["val", "train", "train", "val"]
    assert seen[1][1]["iteration"] == 1
    assert seen[3][1] == {"iteration": 2, "eval/reverse_kl": 0.4}
