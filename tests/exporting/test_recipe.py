"""Recipes for clusters: valid shell and Python with the run's own numbers in them."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest
from exporting.run_folders import make_run

from trb_mlx.errors import UserError
from trb_mlx.exporting.recipe import write_recipe

CHANGES = [
    ("behavior.budget", 0.05),
    ("rollout.max_tokens", 96),
    ("rollout.temperature", 0.7),
    ("rollout.rollouts_per_prompt", 6),
    ("train.steps", 40),
    ("train.learning_rate", 3e-5),
    ("train.prompts_per_step", 10),
    ("train.micro_batch_size", 8),
    ("lora.scale", 1.5),
    ("lora.keys", ["self_attn.q_proj", "mlp.up_proj"]),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe") / "my run"
    make_run(folder, "bundled:arithmetic-student", CHANGES)
    return folder


def test_verl_reads_the_overrides_from_valid_shell(run: Path) -> None:
    path = write_recipe(str(run), "verl", None)
    assert path == run / "export/verl/distill.sh"
    text = path.read_text().replace("python3 -m verl.trainer.main_ppo", "printf '%s\\n'")
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    overrides = dict(line.split("=", 1) for line in done.stdout.splitlines())
    expected = {
        "data.train_batch_size": "10",
        "data.max_response_length": "96",
        "actor_rollout_ref.model.path": "bundled:arithmetic-student",
        "actor_rollout_ref.model.lora_rank": "4",
        "actor_rollout_ref.model.lora_alpha": "6",
        "actor_rollout_ref.model.target_modules": '["q_proj", "up_proj"]',
        "actor_rollout_ref.actor.optim.lr": "3e-05",
        "actor_rollout_ref.rollout.n": "6",
        "actor_rollout_ref.rollout.temperature": "0.7",
        "distillation.teacher_models.teacher_model.model_path": "bundled:arithmetic-teacher",
        "distillation.distillation_loss.topk": "16",
        "distillation.distillation_loss.use_task_rewards": "False",
        "trainer.total_training_steps": "40",
        "trainer.experiment_name": "my run",
    }
    assert {key: overrides[key] for key in expected} == expected
    assert "behavior (TRB, ε 0.05 annealed to 0 over 50 steps): there the student alone" in text


def test_trl_gets_a_valid_script(run: Path) -> None:
    tree = ast.parse(write_recipe(str(run), "trl", None).read_text())
    calls = {
        node.func.id: {word.arg: word.value for word in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    settings = {key: ast.literal_eval(value) for key, value in calls["DistillationConfig"].items()}
    assert settings["beta"] == 1.0
    assert settings["temperature"] == 0.7
    assert settings["max_completion_length"] == 96
    assert settings["max_steps"] == 40
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    assert batch == 10 * 6
    assert ast.literal_eval(calls["LoraConfig"]["lora_alpha"]) == 6.0
    assert "ε 0.05 annealed" in (ast.get_docstring(tree) or "")


def test_mistakes_are_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--recipe verll is not known; did you mean verl\?"):
        write_recipe(str(run), "verll", None)
    with pytest.raises(UserError, match="is no run folder"):
        write_recipe(str(tmp_path), "verl", None)
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="holds mine, which no export wrote"):
        write_recipe(str(run), "trl", tmp_path)


@pytest.mark.parametrize(
    ("divergence", "mode", "beta"),
    [("reverse_kl", "k1", 1.0), ("forward_kl", "forward_kl_topk", 0.0), ("jsd", "k1", 0.3)],
)
def test_each_divergence_has_its_names_there(
    tmp_path: Path, divergence: str, mode: str, beta: float
) -> None:
    loss = {"divergence": divergence, "mode": "exact", "beta": 0.3}
    veto = {"kind": "veto", "sft_steps": 3}
    make_run(tmp_path / "run", "bundled:arithmetic-student", [("loss", loss), ("target", veto)])
    verl, trl = (
        write_recipe(str(tmp_path / "run"), stack, None).read_text() for stack in ("verl", "trl")
    )
    assert f"distillation_loss.loss_mode={mode}\n" in verl
    assert f"distillation_loss.use_policy_gradient={mode == 'k1'}\n" in verl
    assert f"    beta={beta}," in trl
    for text in (verl, trl):
        assert "Veto's bridge from 0.4 over 50 steps" in text
        assert "after 3 steps of SFT" in text
