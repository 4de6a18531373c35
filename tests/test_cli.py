"""The command line: documented, light, and with exit codes that a script can trust."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from em_core.config import Evaluation, Execution, TrainingConfig
from em_core.errors import EmsweepError, Fault, UserError
from em_core.journal import SweepDir, append_batch
from sweeps import cli
from sweeps.resources import Resources
from sweeps.schema import spec_schema
from sweeps.site import Site
from sweeps.yamlfile import read_document
from tests.conftest import Emsweep
from tests.test_expand import EXAMPLE

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def call(*args: str) -> int:
    """Exit code of the command line, in this process."""
    try:
        cli.main(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_commands() -> None:
    assert {
        "plan",
        "run",
        "submit",
        "status",
        "show",
        "logs",
        "cancel",
        "retry",
        "exclude",
        "collect",
        "sql",
        "report",
        "law",
        "schema",
    } <= set(COMMANDS)


@pytest.mark.fast
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does(command: str) -> None:
    found = typer.main.get_command(cli.app).commands[command]  # type: ignore[attr-defined]
    assert found.help
    assert found.help.splitlines()[0].endswith(".")
    for parameter in found.params:
        if parameter.name != "help" and parameter.param_type_name == "option":
            assert parameter.help, f"--{parameter.name}"


@pytest.mark.fast
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for p in DOCS)
    assert re.search(rf"emsweep [a-z |]*\b{command}\b", text), f"`emsweep {command}` is in neither README.md nor docs/"


@pytest.mark.slow
def test_help_is_quick(emsweep: Emsweep, capsys: pytest.CaptureFixture[str]) -> None:
    took = []
    for _ in range(3):
        began = time.perf_counter()
        said = emsweep("--help", check=0).stdout
        took.append(time.perf_counter() - began)
    assert all(command in said for command in COMMANDS)
    with capsys.disabled():
        print(f"\nemsweep --help: {min(took):.2f} s")
    assert min(took) < 5


# -- exit codes --------------------------------------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        (["plan", "--help"], 0),
        ([], 2),
        (["plann"], 2),
        (["plan"], 2),
        (["plan", "spec.yaml", "--lancher", "local"], 2),
        (["plan", "spec.yaml", "--launcher", "pbs"], 2),
        (["plan", "nowhere.yaml"], 2),
        (["run", "nowhere.yaml"], 2),
        (["submit", "nowhere.yaml"], 2),
        (["status"], 2),
        (["status", "nothing"], 2),
        (["show", "0123456789ab-s0"], 2),
        (["logs", "nothing"], 2),
        (["cancel", "nothing"], 2),
        (["retry", "nothing"], 2),
        (["exclude", "nothing", "--reason", "why"], 2),
        (["exclude", "nothing"], 2),
        (["report", "nothing"], 2),
        (["sql", "FROM runs"], 2),
        (["schema"], 0),
    ],
)
def test_exit_codes(args: list[str], code: int, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*args) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert not list(here.iterdir()), "a question writes nothing"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("command", "target", "said"),
    [
        ("status", "examplee", "unknown sweep `examplee`; did you mean `example`?"),
        ("report", "exampel", "unknown sweep `exampel`; did you mean `example`?"),
        ("status", "../example", "unknown sweep `../example`; did you mean `example`?"),
        ("cancel", "", "unknown sweep ``; known: example"),
        (
            "show",
            "r",
            "no sweep under * has a run `r` (a run is CONFIG_ID-sSEED or CONFIG_ID-sSEED-rREPEAT; `emsweep sql` lists them)",
        ),
    ],
)
def test_unknown_targets(command: str, target: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_batch(SweepDir(here / "runs", "example").manifest, [("sweep", {"sweep": "example", "evaluations": []})])
    assert call(command, target) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch("emsweep: " + re.escape(said).replace(r"\*", ".*") + "\n", err)
    assert [p.name for p in here.iterdir()] == ["runs"]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("bad input"), 2),
        (Fault("the disk is full"), 1),
        (EmsweepError("else"), 1),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_errors_are_one_line(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert call("plan") == code
    assert capsys.readouterr().err == (f"emsweep: {error}\n" if isinstance(error, EmsweepError) else "")


@pytest.mark.fast
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("plan")


@pytest.mark.slow
@pytest.mark.parametrize(
    "query",
    [
        "CREATE TABLE t (n INT)",
        "DELETE FROM runs",
        "COPY (SELECT 1) TO 'out.csv'",
        "ATTACH 'other.duckdb'",
        "SELEC 1",
        "FROM nowhere",
        "",
    ],
)
def test_sql_that_would_write_or_is_none(query: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import duckdb

    duckdb.connect(str(here / "results.duckdb")).execute("CREATE TABLE runs AS SELECT 1 AS n").close()
    assert call("sql", query) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("emsweep: ")
    assert [p.name for p in here.iterdir()] == ["results.duckdb"]


@pytest.mark.slow
def test_results_that_are_not_duckdb(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "results.duckdb").write_text("not a database")
    assert call("sql", "FROM runs") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "results.duckdb" in err
    assert (here / "results.duckdb").read_text() == "not a database"


# -- schema ------------------------------------------------------------------------------------------------------------


def described(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of a schema, with its path."""
    if isinstance(node, dict):
        for name, field in node.get("properties", {}).items():
            yield f"{path}/{name}", field
        for key, value in node.items():
            yield from described(value, f"{path}/{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from described(value, f"{path}/{i}")


@pytest.mark.fast
def test_every_field_of_the_schema_is_described() -> None:
    found = dict(described(spec_schema()))
    assert len(found) > 80
    bare = [path for path, field in found.items() if not field.get("description")]
    assert not bare


@pytest.mark.fast
@pytest.mark.parametrize("model", [TrainingConfig, Evaluation, Execution, Resources, Site])
def test_every_number_has_its_unit(model: Any) -> None:
    """In parentheses: (tokens), (count), (minutes), (dimensionless), (0 < p <= 1), ..."""
    numbers = [n for n, f in model.model_fields.items() if re.search(r"\b(int|float)\b", str(f.annotation))]
    bare = [n for n in numbers if "(" not in (model.model_fields[n].description or "")]
    assert not bare


@pytest.mark.fast
def test_schema_is_json_and_says_who_reads_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("schema") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(json.dumps(spec_schema()))
    fields = said["$defs"]["Fields"]["properties"]
    assert fields["loss_temperature"]["description"].endswith("Read by: noop, external, em.")
    assert "rent" in fields["kl_coef"]["description"].rpartition("Read by: ")[2]
    assert set(said["$defs"]["Fields"]["properties"]) == set(TrainingConfig.model_fields) - {"params"}


@pytest.mark.fast
def test_schema_takes_the_example_and_refuses_mistakes(here: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed; editors bring their own")
    (here / "spec.yaml").write_text(EXAMPLE)
    example = read_document(here / "spec.yaml").data
    validator = jsonschema.Draft202012Validator(spec_schema())
    validator.validate(example)
    for change in (
        {"sedes": 3},
        {"base": {**example["base"], "lerning_rate": 1}},
        {"base": {**example["base"], "num_generations": 0}},
        {"axes": {"learning_rate": []}},
        {"axes": {"learning_rate": 1e-3}},
        {"name": "a/b"},
        {"keep": "best:0"},
        {"seeds": "many"},
        {"resources": {"timeout": 3}},
        {"evaluate": [{"task": ["two_step_sums"]}]},
    ):
        assert not validator.is_valid(copy.deepcopy(example) | change), change
