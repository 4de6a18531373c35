"""Who may import whom, and what is too heavy to be imported where. Read from the source, and from real processes."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("em_core", "launchers", "sweeps", "analysis")
SHARED = {"em_core", "em_core.attempts", "em_core.config", "em_core.journal", "em_core.errors", "em_core.lock"}
"""The vocabulary that everybody may use; the bare package is where it lies."""
NOT_ON_A_NODE = {"duckdb", "polars", "optuna", "mlflow", "matplotlib", "scipy", "statsmodels", "selenium"}
NEVER_TORCH = {
    "em_core.attempts",
    "em_core.config",
    "em_core.journal",
    "em_core.lock",
    "em_core.errors",
    "em_core.noop",
    "em_core.tasks",
    "em_core.prompts",
    "em_core.models",
}
NEVER_TORCH |= {"em_core.worker", "em_core.grading", "em_core.noise"}
HEAVY = {
    "torch",
    "transformers",
    "accelerate",
    "duckdb",
    "polars",
    "pyarrow",
    "numpy",
    "scipy",
    "submitit",
    "matplotlib",
    "optuna",
    "mlflow",
}


def modules(package: str) -> dict[str, Path]:
    """Module name -> file, of every module of a package."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, top_level: bool = False) -> Iterator[str]:
    """Modules that a file imports, `from a import b` as `a.b` where that is a module; none under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for a in node.names:
                module = f"{node.module}.{a.name}"
                is_file = (ROOT / Path(*module.split("."))).with_suffix(".py").exists()
                yield module if is_file else str(node.module)
        stack += ast.iter_child_nodes(node)


def reached(start: str, top_level: bool) -> set[str]:
    """Everything that importing a module of ours imports, ours followed through."""
    ours = {name: path for package in PACKAGES for name, path in modules(package).items()}
    seen: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        parents = [name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)]
        for module in (name, *parents):
            if module in ours:
                todo += imports(ours[module], top_level)
    return seen


def tops(names: set[str]) -> set[str]:
    return {n.split(".")[0] for n in names}


@pytest.mark.fast
def test_em_core_knows_nobody() -> None:
    for name, path in modules("em_core").items():
        assert not tops(set(imports(path))) & {"launchers", "sweeps", "analysis"}, name


@pytest.mark.fast
@pytest.mark.parametrize(("package", "other"), [("launchers", "analysis"), ("analysis", "launchers")])
def test_launchers_and_analysis_know_only_the_shared_words(package: str, other: str) -> None:
    for name, path in modules(package).items():
        known = set(imports(path))
        assert not tops(known) & {other, "sweeps"}, name
        extra = {m for m in known if m.split(".")[0] == "em_core"} - SHARED
        assert not extra, f"{name} imports {extra}"


@pytest.mark.fast
def test_nothing_imports_sweeps_but_sweeps() -> None:
    for package in ("em_core", "launchers", "analysis"):
        for name, path in modules(package).items():
            assert "sweeps" not in tops(set(imports(path))), name


@pytest.mark.fast
@pytest.mark.parametrize("name", sorted(NEVER_TORCH))
def test_never_torch(name: str) -> None:
    assert not tops(reached(name, top_level=True)) & {"torch", "transformers", "accelerate"}


@pytest.mark.fast
@pytest.mark.parametrize("name", ["launchers.task", *sorted(modules("em_core"))])
def test_on_a_node(name: str) -> None:
    """What runs on a node needs none of the analysis, not even within a function."""
    assert not tops(reached(name, top_level=False)) & NOT_ON_A_NODE


@pytest.mark.fast
@pytest.mark.parametrize(
    "name", ["sweeps.cli", "sweeps.spec", "sweeps.expand", "sweeps.plan", "launchers.task", "launchers.slurm"]
)
def test_light_at_the_top(name: str) -> None:
    """Heavy imports live in the function that needs them."""
    assert not tops(reached(name, top_level=True)) & HEAVY


def loaded(code: str, tmp_path: Path) -> set[str]:
    """Top-level modules that a fresh process has loaded after running some code."""
    script = f"{code}\nimport sys\nprint('LOADED', *sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED ")[2].split())


@pytest.mark.slow
@pytest.mark.parametrize("module", ["sweeps.cli", "em_core.worker", "launchers.task", "em_core.config"])
def test_import_stays_light(module: str, tmp_path: Path) -> None:
    found = loaded(f"import {module}", tmp_path)
    assert not found & HEAVY
    if module == "sweeps.cli":
        assert "pydantic" not in found
        assert "ruamel" not in found


@pytest.mark.slow
def test_a_rehearsal_never_loads_torch(tmp_path: Path) -> None:
    code = """
import threading
from em_core.worker import Worker
from em_core.config import Evaluation, Execution, RunRequest, TrainingConfig
request = RunRequest(
    "c-s0", "c", 0, 0, "train", TrainingConfig(model_name_or_path="miniature", prompt="a", method="noop", max_steps=3),
    (("e", Evaluation(task="two_step_sums", task_key="two_step_sums@1"), (0, 3)),), "none", "ckpt",
)
said = []
outcome = Worker(Execution(), -1, threading.Event())._trainer("noop").run(request, lambda kind, **fields: said.append(kind))
assert (outcome.status, outcome.steps) == ("completed", 3), outcome
assert said == ["eval", "metrics", "metrics", "metrics", "eval"], said
"""
    assert not loaded(code, tmp_path) & (HEAVY | {"typer", "rich", "ruamel"})


@pytest.mark.slow
def test_planning_never_loads_torch_or_the_results(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(
        "name: t\nbase: {model_name_or_path: miniature, prompt: plus}\nseeds: 2\nevaluate: [{tasks: [two_step_sums]}]\n"
    )
    code = """
from sweeps import cli
try:
    cli.main(["plan", "spec.yaml", "--launcher", "local"])
except SystemExit as stop:
    assert not stop.code
"""
    assert not loaded(code, tmp_path) & (HEAVY - {"numpy"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spec.yaml"]
