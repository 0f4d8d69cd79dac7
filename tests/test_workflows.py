"""What contributors and hosted machines run is what the README and .ci/run say."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import trb_mlx

ROOT = Path(__file__).parent.parent
CI, RELEASE = (ROOT / ".github" / "workflows" / name for name in ("ci.yml", "release.yml"))
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
CI_RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
PYTEST = "python -m pytest"


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(workflow: Path, job: str) -> list[str]:
    steps = read(workflow)["jobs"][job]["steps"]
    return [line for step in steps for line in step.get("run", "").splitlines()]


def hooks() -> list[str]:
    """The entries of .pre-commit-config.yaml as checks that change nothing."""
    [repository] = read(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    return [
        entry.replace("ruff check --fix", "ruff check").replace(
            "ruff format", "ruff format --check"
        )
        for entry in entries
    ]


@pytest.mark.parametrize("job", ["test", "mac"])
def test_ci_installs_tests_and_trains_as_the_readme_says(job: str) -> None:
    given = commands(CI, job)
    assert given
    for command in given:
        before, runs_tests, paths = command.partition(PYTEST)
        assert before + runs_tests in README, command
        assert runs_tests or not paths


def test_hooks_ci_and_the_lint_job_run_the_same_checks() -> None:
    install, *checks = commands(CI, "lint")
    assert install in README
    assert checks == hooks()
    assert [line for line in CI_RUN if line in checks] == checks


def test_ci_covers_every_python_that_the_package_admits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    admitted = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"])
    assert admitted is not None
    versions = [f"3.{minor}" for minor in range(int(admitted[1]), int(admitted[2]))]
    assert read(CI)["jobs"]["test"]["strategy"]["matrix"]["python"] == versions


def test_the_mac_has_metal() -> None:
    assert read(CI)["jobs"]["mac"]["runs-on"] == "macos-15"  # macos-14 read mapped weights stale


def test_every_path_that_a_command_names_exists() -> None:
    jobs = [commands(CI, job) for job in read(CI)["jobs"]]
    words = [word for job in [*jobs, hooks()] for line in job for word in shlex.split(line)]
    paths = [word for word in words if "/" in word or word.endswith((".cff", ".yml", ".yaml"))]
    assert len(paths) >= 10
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_form_and_workflow_is_checked_against_its_schema() -> None:
    checked = {word for line in hooks() for word in line.split() if word.endswith(".yml")}
    found = {str(path.relative_to(ROOT)) for path in (ROOT / ".github").rglob("*.yml")}
    # The schema of the chooser's settings is not worth a process of its own.
    assert checked == found - {".github/ISSUE_TEMPLATE/config.yml"}


def test_a_bug_report_asks_for_the_doctor() -> None:
    fields = read(ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml")["body"]
    [doctor] = [field for field in fields if field["id"] == "doctor"]
    assert "trb-mlx doctor --json" in doctor["attributes"]["label"]
    assert doctor["validations"]["required"] is True


def test_only_publishing_may_ask_for_a_token() -> None:
    release = read(RELEASE)
    assert release["permissions"] == {"contents": "read"}
    asking = {name for name, job in release["jobs"].items() if "permissions" in job}
    assert asking == {"publish"}
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in RELEASE.read_text(encoding="utf-8")


def test_the_citation_is_of_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == trb_mlx.__version__
    assert "2605.31159" in str(citation["references"])
