"""The house: rooms import only from the rooms above them, and every public name is explained."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "trb_mlx"
# Top to bottom: a module may import from its own line and the lines above.
ROOMS = [
    {"errors", "text", "backend", "bounds"},
    {"config_sections", "types", "files", "interrupts", "yaml_file"},
    {"config"},
    {"config_mistakes"},
    {"config_file"},
    {"method"},
    {"ops"},
    {"kernels"},
    {"ranks"},
    {"models"},
    {"data"},
    {"runs"},
    {"adapters"},
    {"rollout"},
    {"evaluation"},
    {"planning"},
    {"training"},
    {"exporting"},
    {"report"},
    {"comparison"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
            if node.module.startswith("trb_mlx"):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_above(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "trb_mlx" or parts[1] == "__version__":
            continue
        assert LEVEL[parts[1]] <= LEVEL[room], f"{path.name} imports {name}"


@pytest.mark.parametrize(
    "room",
    "config_sections config config_file config_mistakes yaml_file types errors data".split(),
)
def test_these_rooms_know_no_mlx(room: str) -> None:
    for path in MODULES:
        if room_of(path) == room:
            assert not {name for name in imports(path) if name.split(".")[0] in ("mlx", "mlx_lm")}


def test_ops_knows_neither_models_nor_files() -> None:
    for path in (PACKAGE / "ops").glob("*.py"):
        outside = {name.split(".")[0] for name in imports(path)}
        assert outside <= {
            "mlx",
            "numpy",
            "trb_mlx",
            "__future__",
            "collections",
            "dataclasses",
            "functools",
            "math",
            "typing",
        }, path


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module's top level, those for type checkers left out."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from run_at_import(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from run_at_import(node.body)
        else:
            yield node


def import_graph() -> dict[str, set[str]]:
    """Each module with the modules of the package that its import imports."""
    names = {dotted(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        edges = graph.setdefault(dotted(path), set())
        for node in run_at_import(ast.parse(path.read_text()).body):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & names
                edges |= inner or {node.module} & names
            elif isinstance(node, ast.Import):
                edges |= {alias.name for alias in node.names} & names
    return graph


def test_no_modules_import_each_other_in_a_circle() -> None:
    list(TopologicalSorter(import_graph()).static_order())  # raises CycleError, which names them


def test_the_report_loads_no_model_and_draws_no_rollout() -> None:
    for path in (PACKAGE / "report").glob("*.py"):
        rooms = {name.split(".")[1] for name in imports(path) if name.startswith("trb_mlx.")}
        assert not rooms & {"models", "rollout", "training"}, path


def test_no_room_holds_more_than_15_percent_of_the_lines() -> None:
    lines: Counter[str] = Counter()
    for path in MODULES:
        lines[room_of(path)] += len(path.read_text().splitlines())
    assert max(lines.values()) <= 0.15 * lines.total(), lines.most_common(3)


def test_mlx_lm_is_touched_in_one_module() -> None:
    touching = {path for path in MODULES if any(n.startswith("mlx_lm") for n in imports(path))}
    assert touching == {PACKAGE / "models" / "mlxlm.py"}


def test_json_is_written_where_nan_becomes_null() -> None:
    """Elsewhere only texts and verdicts, to other processes and libraries."""
    writing = re.compile(r"(write|echo)\w*\(.*json\.dump|json\.dump.*indent")
    found = {p.name for p in MODULES if writing.search(p.read_text())}
    assert found <= {"files.py", "rewards.py", "gguf_tokenizer.py"}


def test_every_public_name_has_a_docstring_and_annotations() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if isinstance(node, ast.ClassDef) or not is_nested(path, node):
                assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}"
            if isinstance(node, ast.FunctionDef):
                given = [a for a in node.args.args + node.args.kwonlyargs if a.arg != "self"]
                bare = [a.arg for a in given if a.annotation is None and a.arg != "cls"]
                assert not bare, f"{path}:{node.lineno} {node.name} {bare}"
                assert node.returns is not None, f"{path}:{node.lineno} {node.name}"


def is_nested(path: Path, wanted: ast.FunctionDef) -> bool:
    """Whether a function is defined inside another."""
    tree = ast.parse(path.read_text())
    return any(
        inner.lineno == wanted.lineno and inner is not outer
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef)
        for inner in ast.walk(outer)
        if isinstance(inner, ast.FunctionDef)
    )


def test_no_module_is_long() -> None:
    for path in MODULES:
        assert len(path.read_text().splitlines()) <= 300, path
