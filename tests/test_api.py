"""The Python API: lazy names, the examples that the README shows, and docstrings' examples."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import trb_mlx
from trb_mlx.config import BehaviorConfig
from trb_mlx.config_file import load_config
from trb_mlx.errors import UserError
from trb_mlx.rollout.behavior import make_behavior

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NAMES = [name for name in trb_mlx.__all__ if name != "__version__"]
# A run of seconds.
SHORT = {
    "train.steps": 2,
    "train.prompts_per_step": 2,
    "eval.prompts": 4,
    "rollout.max_tokens": 16,
    "data.train.limit": 20,
    "behavior.warmup_steps": 1,
}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs land in a folder of their own."""
    monkeypatch.chdir(tmp_path)


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True
    )
    return done.stdout


def test_an_import_loads_nothing_heavy() -> None:
    heavy = "mlx.core numpy pydantic mlx_lm pandas matplotlib".split()
    code = f"import sys, trb_mlx; print([name for name in {heavy} if name in sys.modules])"
    assert python(code).strip() == "[]"


def test_the_names_stay_functions_whatever_is_imported() -> None:
    modules = [
        info.name
        for info in pkgutil.walk_packages(trb_mlx.__path__, "trb_mlx.")
        if not info.name.endswith(("_worker", "__main__"))
    ]
    code = (
        f"import importlib, trb_mlx\nfor name in {modules}: importlib.import_module(name)\n"
        f"print(all(callable(getattr(trb_mlx, name)) for name in {NAMES}))"
    )
    assert python(code).strip() == "True"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = trb_mlx.trian


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_shows_an_example_that_holds(name: str) -> None:
    public = {each: getattr(trb_mlx, each) for each in NAMES}
    scope = {**vars(importlib.import_module(public[name].__module__)), **public}
    (example,) = doctest.DocTestFinder(recurse=False).find(public[name], name, globs=scope)
    assert example.examples
    assert not doctest.DocTestRunner().run(example).failed


@pytest.mark.parametrize("module", ["trb_mlx", "trb_mlx.text", "trb_mlx.config_file"])
def test_examples_of_other_modules_hold(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted
    assert not found.failed


def readme_blocks() -> list[str]:
    return [
        part.split("```")[0] for part in (ROOT / "README.md").read_text().split("```python\n")[1:]
    ]


@pytest.mark.parametrize("name", ["notebook.py", "halfway.py"])
def test_the_readme_shows_the_examples_as_they_are(name: str) -> None:
    _, _, code = (EXAMPLES / name).read_text().partition('"""\n\nimport')
    assert f"import{code}" in readme_blocks()


def test_the_notebook_example_draws_its_curve(tmp_path: Path) -> None:
    code = (EXAMPLES / "notebook.py").read_text()
    code = code.replace('{"run.name": "notebook"}', repr({**SHORT, "run.name": "notebook"}))
    out = python(code.replace('"eval.prompts": 512', '"eval.prompts": 4'))
    assert "evaluation after step 2" in out
    assert (tmp_path / "curve.png").stat().st_size > 5000
    assert (tmp_path / "runs/notebook/export/peft/adapter_model.safetensors").is_file()


def test_a_policy_of_ones_own_is_found_by_every_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text((EXAMPLES / "halfway.py").read_text())
    own = {"behavior.kind": "mine:halfway", "behavior.options": {"weight": 0.25}}
    run = trb_mlx.train("small", overrides={**SHORT, **own, "run.name": "own"})
    metrics = trb_mlx.load_metrics(run.path)
    assert metrics["trb/beta_mean"].dropna().tolist() == [0.25, 0.0]
    assert run.config.behavior.options == {"weight": 0.25}
    script = [sys.executable, "-m", "trb_mlx", "train", "-c", "runs/own/config.yaml", "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*script, "--iters", "3"], capture_output=True, text=True, env=environment, check=True
    )
    assert "mine:halfway, weight 0.25" in done.stdout


def test_a_policy_of_an_installed_package_goes_by_its_entry_point(tmp_path: Path) -> None:
    site = tmp_path / "site"
    package = site / "halfway_policy-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: halfway-policy\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[trb_mlx.behaviors]\nmidway = mine:halfway\n")
    (site / "mine.py").write_text((EXAMPLES / "halfway.py").read_text())
    own = {"behavior.kind": "midway", "behavior.options": {"weight": 0.25}}
    settings = {**SHORT, **own, "train.steps": 1, "run.name": "own"}
    python(f"import sys; sys.path.insert(0, {str(site)!r})\n" + train_code(settings))
    assert '"trb/beta_mean": 0.25' in Path("runs/own/metrics.jsonl").read_text()
    with pytest.raises(subprocess.CalledProcessError) as missing:  # where it is not installed
        python(train_code({**settings, "run.name": "other"}))
    sentence = missing.value.stderr.strip().splitlines()[-1]
    assert "behavior.kind is 'midway'" in sentence
    assert "or an installed policy's name" in sentence


def train_code(settings: dict[str, object]) -> str:
    return f"import trb_mlx; trb_mlx.train('small', overrides={settings!r})"


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("vanila", "did you mean vanilla"),
        ("nowhere.module:policy", "nowhere.module:policy cannot be read: No module named"),
        ("math:policy", "names no function"),
        ("builtins:len", "behavior.kind builtins:len cannot be read"),
        ("builtins:repr", "gave a str, expected a trb_mlx.Behavior"),
    ],
)
def test_a_policy_that_is_none_is_one_sentence(kind: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        make_behavior(load_config("small", [("behavior.kind", kind)]).behavior)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mapping_is_a_config(tmp_path: Path) -> None:
    config = {
        "student.model": "bundled:arithmetic-student",
        "teacher": {"model": "bundled:arithmetic-teacher"},
        **SHORT,
        "lora": {"rank": 2},
    }
    run = trb_mlx.train(config, overrides={"train.steps": 1})
    assert run.path == Path("runs/run")
    assert (run.config.lora.rank, run.config.train.steps) == (2, 1)
    assert trb_mlx.load_metrics(run.path).index.tolist() == [0, 1]


def test_a_comparison_gives_its_rows(tmp_path: Path) -> None:
    (tmp_path / "pair.yaml").write_text(
        "base: small\n"
        "set: {train: {steps: 2, prompts_per_step: 2}, eval: {prompts: 4, every: 1},"
        " rollout: {max_tokens: 16}}\n"
        "methods: {vanilla: , trb: }\nseeds: [0]\nproblems: 4\nearly_steps: 2\n"
    )
    lines: list[str] = []
    found = trb_mlx.compare("pair.yaml", progress=lines.append)
    assert [row.method for row in found.rows] == ["vanilla", "trb"]
    assert found.verdict.startswith("decides: final.pass@1")
    assert len(lines) == 3  # the plan, and a line a run
    assert (found.path / "table.md").is_file()


def test_a_mapping_is_a_comparison_which_other_processes_find(tmp_path: Path) -> None:
    mapping = {
        "base": "small",
        "set": {
            "train": {"steps": 1, "prompts_per_step": 2},
            "eval": {"prompts": 2, "every": 1},
            "rollout.max_tokens": 8,
        },
        "methods": {"vanilla": None},
        "seeds": [0, 1],
        "problems": 2,
        "early_steps": 1,
    }
    compared = trb_mlx.compare(mapping, jobs=2)
    assert compared.path == Path("compare/comparison")
    assert len(list((compared.path / "runs").iterdir())) == 2
    lines: list[str] = []
    again = trb_mlx.compare(mapping, progress=lines.append)
    assert lines[0].startswith("2 runs, 0 to do")
    assert again.rows == compared.rows


def test_blend_weights_of_arrays() -> None:
    import mlx.core as mx

    logits = mx.random.normal((2, 3, 64), key=mx.random.key(0))
    student, teacher = (mx.log(mx.softmax(x, axis=-1)) for x in (logits, -logits))
    weight = trb_mlx.solve_blend_weight(student, teacher, 0.02)
    assert weight.shape == (2, 3)
    blend = trb_mlx.blend_logprobs(student, teacher, weight)
    kl = (mx.exp(blend) * (blend - student)).sum(-1)
    assert ((kl > 0.0195) & (kl <= 0.02002)).all().item()


def test_options_are_for_a_policy_of_ones_own_alone() -> None:
    from trb_mlx.method import unread_keys

    config = load_config("small", [("behavior.options", {"weight": 1})])
    assert unread_keys(config) == [
        "behavior.options is {'weight': 1}, but behavior.kind trb does not use it."
    ]
    assert BehaviorConfig(kind="a.b:c").options == {}
