"""configs/smollm2.yaml walked through with tiny GGUF files in the place of the real one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny import CHATML

from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.evaluation.run import generate
from trb_mlx.evaluation.target import open_target
from trb_mlx.runs.folder import locate
from trb_mlx.training.session import train_run

pytest.importorskip("gguf")
from gguf_files import TYPE, write_gguf


def tiny_version(root: Path) -> Config:
    """The shipped config with a tiny file, made-up prompts and fewer of them."""
    template = {"tokenizer.chat_template": CHATML}
    write_gguf(root / "model.gguf", "llama", TYPE.Q4_1, template)
    prompts = root / "train.jsonl"
    rows = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(20)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_config(
        "smollm2",
        [
            ("teacher.model", str(root / "model.gguf")),
            ("student.model", str(root / "model.gguf")),
            ("data.train", {"source": str(prompts), "limit": 12}),
            ("rollout.max_tokens", 8),
            ("behavior.warmup_steps", 2),
            ("train.steps", 3),
            ("train.prompts_per_step", 2),
            ("eval.prompts", 2),
            ("run.dir", str(root / "runs")),
        ],
    )


@pytest.mark.parametrize("changes", [{}, {"group_size": 64}, {"store": "packed"}])
def test_a_rounded_file_learns_from_itself(changes: dict, tmp_path: Path) -> None:
    config = tiny_version(tmp_path)
    assert config.student.quantize is not None
    rounding = config.student.quantize.model_copy(update=changes)
    student = config.student.model_copy(update={"quantize": rounding})
    config = config.model_copy(update={"student": student})
    folder = locate(config, "smollm2")
    output = io.StringIO()
    train_run(config, folder, False, Console(file=output))
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert lines[0]["eval/reverse_kl"] > 1e-4  # the rounding did something
    assert [line.get("trb/epsilon") for line in lines] == [None, 0.1, 0.05, 0.0]
    assert not any(line["skipped"] for line in lines[1:])
    assert "mlx_lm generate" not in output.getvalue()  # mlx-lm reads no GGUF of ours
    target = open_target(str(folder.path), None, "final")
    assert isinstance(generate(target, "1 + 1?", max_tokens=4), str)
