"""Bad input: each mistake is one line with its place in the file, exit code 2, and nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from em_core.errors import UserError
from sweeps import cli
from sweeps.expand import Expansion, expand
from sweeps.plan import make_plan
from sweeps.spec import load_site, load_spec
from sweeps.yamlfile import read_document
from tests.conftest import Emsweep

OK = """\
name: t
base: {model_name_or_path: miniature, prompt: plus, max_steps: 10}
axes:
  learning_rate: [1.0e-4, 1.0e-3]
seeds: 2
evaluate:
  - {tasks: [two_step_sums], steps: [0, 5]}
"""
B, L, S = (OK.splitlines()[i] for i in (1, 3, 4))
FILES = {
    "p.csv": b"prompt,b\nhello,1\n",
    "bad.jsonl": b"{\n",
    "list.jsonl": b"[1]\n",
    "plain.jsonl": b'{"problem": "1+1", "solution": "\\\\boxed{2}"}\n{"problem": "1+2", "answer": "3"}\n',
    "list2.jsonl": b'{"a": 1}\n',
    "null.jsonl": b'{"prompt": null}\n',
    "bad.parquet": b"x",
    "bin.txt": b"\xff\xfe\x00",
    "bin.csv": b"\xff\xfe\x00",
    "bin.jsonl": b"\xff\xfe\x00",
    "empty.txt": b"",
    "empty.csv": b"",
}


def sub(a: str, b: str) -> str:
    """The good spec with one text in place of another."""
    assert a in OK
    return OK.replace(a, b)


def base(fields: str) -> str:
    return sub("max_steps: 10}", f"max_steps: 10, {fields}}}")


def axis(line: str) -> str:
    return sub(L, f"  {line}")


def lr(values: str) -> str:
    return axis(f"learning_rate: {values}")


def more(line: str) -> str:
    """The good spec with more at its end: line 8."""
    return f"{OK}{line}\n"


def budget(keys: str) -> str:
    return sub(S, f"seeds: {{{keys}}}")


def ev(entry: str) -> str:
    return sub("  - {tasks: [two_step_sums], steps: [0, 5]}", f"  - {entry}")


BAD: dict[str, tuple[str | bytes, str]] = {
    "unknown field base": (
        base("lerning_rate: 1"),
        "2: base.lerning_rate: unknown field `lerning_rate`; did you mean `learning_rate`?",
    ),
    "kl_cov on policy": (
        base("method: kl_cov"),
        "2: base.method: kl_cov does nothing with one update per rollout: set `steps_per_generation` or `num_iterations` above 1",
    ),
    "clip-higher on policy": (
        base("method: rent, epsilon_high: 0.28"),
        "2: base.epsilon_high: epsilon_high of rent does nothing with one update per rollout: set `steps_per_generation` or...",
    ),
    "no group": (
        base("method: rent, num_generations: 1"),
        "2: base.num_generations: rent judges a completion by the others of its prompt: it needs at least 2",
    ),
    "unequal updates": (
        base("method: rent, num_generations: 8, steps_per_generation: 3"),
        "2: base.steps_per_generation: 8 completions cannot be shared equally by 3 updates",
    ),
    "rule without task": (
        base("stop_rule: validation_accuracy"),
        "2: base.stop_rule: stop_rule validation_accuracy and stop_task go together: set both, or neither",
    ),
    "stop task": (
        base("stop_rule: validation_accuracy, stop_task: two_step_sms"),
        "2: base.stop_task: unknown task 'two_step_sms'; did you mean 'two_step_sums'? (or give the path of a .parquet,...",
    ),
    "models list": (more("models: [a]"), "8: models: is a mapping: pattern of a model's name -> the keys that are different"),
    "models key": (
        more("models: {other: {bse: {}}}"),
        "8: models.other.bse: unknown key `bse`; did you mean `base`?",
    ),
    "unknown axis": (
        axis("lerning_rate: [1, 2]"),
        "4: axes.lerning_rate: unknown field `lerning_rate`; did you mean `learning_rate`?",
    ),
    "training at top": (
        more("temperature: 1"),
        "8: temperature: `temperature` is a training field: put it under `base:` or `axes:`",
    ),
    "typo explains missing": (sub(S, "sedes: 2"), "5: sedes: unknown key `sedes`; did you mean `seeds`?"),
    "lr fast": (lr("[fast]"), "4: axes.learning_rate.0: 'fast' is not a number"),
    "base fast": (base("weight_decay: fast"), "2: base.weight_decay: 'fast' is not a number"),
    "empty axis": (lr("[]"), "4: axes.learning_rate: an empty axis: no run has no value"),
    "axis null": (lr("null"), "4: axes.learning_rate: an axis needs a list of values (or..."),
    "axis scalar": (lr("1.0e-3"), "4: axes.learning_rate: an axis needs a list of values (or..."),
    "axis dict": (lr("{geomspce: [1,2,3]}"), "4: axes.learning_rate: unknown spacing `geomspce`; did you mean `geomspace`?"),
    "geom zero": (lr("{geomspace: [0, 1, 3]}"), "4: axes.learning_rate: geomspace needs a first and last value above 0"),
    "geom neg": (lr("{geomspace: [-1, 1, 3]}"), "4: axes.learning_rate: geomspace needs a first and last value above 0"),
    "geom str": (
        lr("{geomspace: [a, 1, 3]}"),
        "4: axes.learning_rate: geomspace needs [first, last, count], three finite numbers",
    ),
    "count0": (lr("{geomspace: [1, 2, 0]}"), "4: axes.learning_rate: geomspace needs a count of at least 1, not 0"),
    "count f": (lr("{geomspace: [1, 2, 2.5]}"), "4: axes.learning_rate: geomspace needs a count of at least 1, not 2.5"),
    "count bool": (
        lr("{linspace: [1, 2, true]}"),
        "4: axes.learning_rate: linspace needs [first, last, count], three finite numbers",
    ),
    "geom huge": (
        lr("{geomspace: [1.0e-5, 1.0e-3, 1000000000]}"),
        "4: axes.learning_rate: 1,000,000,000 values; the limit is 2,000,000",
    ),
    "geom overflow": (lr("{geomspace: [1.0e-300, 1.0e300, 3]}"), "4: axes.learning_rate.1: inf is not finite"),
    "range zero": (
        lr("{range: [1, 2, 0]}"),
        "4: axes.learning_rate: range [1, 2, 0] is empty: the step leads away from the last value",
    ),
    "range huge": (
        lr("{range: [0, 1, 1.0e-12]}"),
        "4: axes.learning_rate: range [0, 1, 1e-12] has too many values; the limit is 2,000,000",
    ),
    "lin int non-whole": (axis("num_generations: {linspace: [1, 8, 3]}"), "4: axes.num_generations.1: 4.5 is not a whole number"),
    "geom same": (lr("{geomspace: [1, 1, 3]}"), "4: axes.learning_rate.1: 1.0 is in the axis twice"),
    "axis equal rounded": (
        lr("[0.3, 0.1]\n  weight_decay: [0.30000000000000004, 0.3]"),
        "5: axes.weight_decay.1: 0.3 is in the axis twice",
    ),
    "nan": (lr("[.nan]"), "4: axes.learning_rate.0: nan is not finite"),
    "inf": (lr("[.inf]"), "4: axes.learning_rate.0: inf is not finite"),
    "neg lr": (lr("[-1.0e-3]"), "4: axes.learning_rate.0: -0.001 must be greater than or equal to 0"),
    "top_p 1.5": (base("top_p: 1.5"), "2: base.top_p: 1.5 must be less than or equal to 1"),
    "top_p 0": (base("top_p: 0"), "2: base.top_p: 0 must be greater than 0"),
    "temp 0": (base("temperature: 0"), "2: base.temperature: 0 must be greater than 0"),
    "ngen 0": (base("num_generations: 0"), "2: base.num_generations: 0 must be greater than or equal to 1"),
    "beta 1": (base("adam_beta1: 1.0"), "2: base.adam_beta1: 1.0 must be less than 1"),
    "ngen 8.5": (base("num_generations: 8.5"), "2: base.num_generations: 8.5 is not a whole number"),
    "bool for int": (base("num_generations: true"), "2: base.num_generations: true is not a whole number"),
    "str int": (base("num_generations: '8'"), "2: base.num_generations: '8' is not a whole number"),
    "int overflow": (
        base("num_generations: 99999999999999999999999"),
        "2: base.num_generations: the number is too large (64 bits)",
    ),
    "lr overflow": (lr("[1" + "0" * 400 + "]"), "4: axes.learning_rate.0: the number is too large (64 bits)"),
    "max_steps neg": (sub("max_steps: 10", "max_steps: -1"), "2: base.max_steps: -1 must be greater than or equal to 0"),
    "method unknown": (base("method: ent"), "2: base.method: unknown method `ent`; did you mean `rent`?"),
    "method list": (base("method: [em]"), "2: base.method: ['em'] is not text"),
    "method null": (base("method: null"), "2: base.method: null is not text"),
    "base value list": (base("weight_decay: [1, 2]"), "2: base.weight_decay: [1, 2] is not a number"),
    "dtype": (base("dtype: float16"), "2: base.dtype: 'float16' must be 'auto', 'bfloat16' or 'float32'"),
    "chat_template": (base("chat_template: yes"), "2: base.chat_template: 'yes' must be 'auto' or 'none'"),
    "zip unequal": (
        more("zip:\n  - {temperature: [0.3, 0.5], top_p: [0.9]}"),
        "9: zip.0: zipped axes must have equal lengths: temperature has 2, top_p has 1",
    ),
    "zip mapping": (more("zip: {temperature: [0.3, 0.5]}"), "8: zip: {'temperature': [0.3, 0.5]} is not a list"),
    "zip empty": (more("zip: [{}]"), "8: zip.0: an empty zip block"),
    "zip dup axis": (
        more("zip: [{learning_rate: [0.3]}]"),
        "8: zip.0.learning_rate: `learning_rate` is already set under `axes`",
    ),
    "zip unknown": (
        more("zip: [{temprature: [0.3]}]"),
        "8: zip.0.temprature: unknown field `temprature`; did you mean `temperature`?",
    ),
    "zip empty axis": (more("zip: [{temperature: []}]"), "8: zip.0.temperature: an empty axis: no run has no value"),
    "seeds dup": (sub(S, "seeds: [1, 2, 1]"), "5: seeds.2: seed 1 is listed twice"),
    "seeds neg": (sub(S, "seeds: [0, -1]"), "5: seeds.1: seed -1 is negative"),
    "seeds 0": (sub(S, "seeds: 0"), "5: seeds: 0 seeds: at least 1 is needed"),
    "seeds []": (sub(S, "seeds: []"), "5: seeds: an empty list of seeds"),
    "seeds str": (sub(S, "seeds: many"), "5: seeds: 'many' is not a whole number"),
    "seeds float": (sub(S, "seeds: 2.5"), "5: seeds: 2.5 is not a whole number"),
    "seeds list str": (sub(S, "seeds: [0, a]"), "5: seeds.1: 'a' is not a whole number"),
    "seeds missing": (sub(S + "\n", ""), "1: seeds: is missing"),
    "seeds null": (sub(S, "seeds:"), "5: seeds: null is not a whole number"),
    "seeds huge": (
        sub(S, "seeds: 1000000000000"),
        "5: seeds: 1,000,000,000,000 seeds; the limit is 2,000,000 (a single seed is a list: [1000000000000])",
    ),
    "budget typo": (budget("mni: 4, max: 8, until: {half_width: 0.1}"), "5: seeds.mni: unknown key `mni`; did you mean `min`?"),
    "budget until typo": (
        budget("min: 4, max: 8, until: {half_widht: 0.1}"),
        "5: seeds.until.half_widht: unknown key `half_widht`; did you mean `half_width`?",
    ),
    "budget no until": (budget("min: 4, max: 8"), "5: seeds.until: is missing"),
    "budget no width": (budget("min: 4, max: 8, until: {}"), "5: seeds.until.half_width: is missing"),
    "budget min 1": (
        budget("min: 1, max: 8, until: {half_width: 0.1}"),
        "5: seeds.min: 1 must be greater than or equal to 2",
    ),
    "budget max": (budget("min: 4, max: 4, until: {half_width: 0.1}"), "5: seeds.max: 4 must be above `min` (4)"),
    "budget huge": (
        budget("min: 4, max: 3000000, until: {half_width: 0.1}"),
        "5: seeds.max: 3,000,000 seeds; the limit is 2,000,000",
    ),
    "budget many runs": (
        budget("min: 4, max: 2000000, until: {half_width: 0.1}"),
        "3: axes: the spec expands to 4,000,000 runs; the limit is 2,000,000",
    ),
    "budget float": (budget("min: 4.5, max: 8, until: {half_width: 0.1}"), "5: seeds.min: 4.5 is not a whole number"),
    "budget width 0": (budget("min: 4, max: 8, until: {half_width: 0}"), "5: seeds.until.half_width: 0 must be greater than 0"),
    "budget step": (
        budget("min: 4, max: 8, until: {half_width: 0.1, step: 7}"),
        "5: seeds.until.step: step 7 is not measured by the first of `evaluate`, only 0, 5",
    ),
    "budget unmeasured": (
        budget("min: 4, max: 8, until: {half_width: 0.1}").partition("evaluate")[0],
        "5: seeds.until: needs a measurement to judge by: say what under `evaluate:`",
    ),
    "budget of logits": (
        budget("min: 4, max: 8, until: {half_width: 0.1}").replace("tasks:", "measure: logits, tasks:"),
        "5: seeds.until: only logits are measured: name one of their values as `metric`, as logit_skewness",
    ),
    "seed axis": (axis("seed: [0, 1]"), "4: axes.seed: seeds are replicates, not a field: use the top-level key `seeds`"),
    "seed base": (base("seed: 0"), "2: base.seed: seeds are replicates, not a field: use the top-level key `seeds`"),
    "exec under base": (base("threads: 2"), "2: base.threads: `threads` does not change the weights: put it under `execution:`"),
    "device axis": (axis("device: [cpu]"), "4: axes.device: `device` does not change the weights: put it under `execution:`"),
    "resource under base": (
        base("timeout_min: 5"),
        "2: base.timeout_min: `timeout_min` does not change the weights: put it under `resources:`",
    ),
    "slurm under base": (base("slurm_x: 5"), "2: base.slurm_x: `slurm_x` does not change the weights: put it under `resources:`"),
    "unread axis": (axis("kl_coef: [0.0, 0.1]"), "4: axes.kl_coef: nobody reads `kl_coef`: not a field of method em"),
    "unread base": (base("kl_coef: 0.1"), "2: base.kl_coef: nobody reads `kl_coef`: not a field of method em"),
    "unread link": (more("link: {kl_coef: temperature}"), "8: link.kl_coef: nobody reads `kl_coef`: not a field of method em"),
    "unread zip": (more("zip: [{kl_coef: [0.1]}]"), "8: zip.0.kl_coef: nobody reads `kl_coef`: not a field of method em"),
    "unread random": (
        more("random: {count: 2, fields: {kl_coef: {uniform: [0, 1]}}}"),
        "8: random.fields.kl_coef: nobody reads `kl_coef`: not a field of method em",
    ),
    "exclude all": (
        more("exclude: [{learning_rate: [1.0e-4, 1.0e-3]}]"),
        "8: exclude: the spec expands to nothing: every point is excluded",
    ),
    "exclude none": (
        more("exclude: [{learning_rate: 5.0e-4}]"),
        "8: exclude.0: {'learning_rate': 0.0005} matches no point; exclude rules must match some",
    ),
    "exclude unknown": (
        more("exclude: [{lerning_rate: 5.0e-4}]"),
        "8: exclude.0.lerning_rate: unknown field `lerning_rate`; did you mean `learning_rate`?",
    ),
    "exclude empty": (more("exclude: [{}]"), "8: exclude.0: an empty rule is for everything"),
    "exclude type": (more("exclude: [{learning_rate: fast}]"), "8: exclude.0.learning_rate: 'fast' is not a number"),
    "exclude mapping": (more("exclude: {learning_rate: 1.0e-4}"), "8: exclude: {'learning_rate': 0.0001} is not a list"),
    "exclude arm": (more("exclude: [{arm: foo}]"), "8: exclude.0.arm: unknown arm `foo`; known: none"),
    "exclude str": (more("exclude: [abc]"), "8: exclude.0: 'abc' is not a mapping"),
    "name path": (sub("name: t", "name: a/b"), "1: name: 'a/b' is not a name: letters, digits, `_`, `.`, `-`; never a path"),
    "name ..": (sub("name: t", "name: .."), "1: name: '..' is not a name: letters, digits, `_`, `.`, `-`; never a path"),
    "name empty": (sub("name: t", "name: ''"), "1: name: '' is not a name: letters, digits, `_`, `.`, `-`; never a path"),
    "name int": (sub("name: t", "name: 12"), "1: name: 12 is not text"),
    "name missing": (sub("name: t\n", ""), "1: name: is missing"),
    "name long": (sub("name: t", "name: " + "a" * 100), "1: name: is longer than 80 characters"),
    "name unicode": (sub("name: t", "name: é"), "1: name: 'é' is not a name: letters, digits, `_`, `.`, `-`; never a path"),
    "name newline": (
        sub("name: t", 'name: "a\\n"'),
        "1: name: 'a\\n' is not a name: letters, digits, `_`, `.`, `-`; never a path",
    ),
    "name space": (sub("name: t", "name: a b"), "1: name: 'a b' is not a name: letters, digits, `_`, `.`, `-`; never a path"),
    "not yaml": ("name: [a\nbase: }", "2: not valid YAML: expected ',' or ']', but got ':'"),
    "list": ("- a\n- b\n", "1: a spec is a mapping of keys to values, not a list"),
    "scalar": ("hello", "1: a spec is a mapping of keys to values, not `hello`"),
    "int": ("42", "1: a spec is a mapping of keys to values, not `42`"),
    "empty": ("", "1: the file is empty; a spec needs at least `name`, `base` and `seeds`"),
    "comment only": ("# hi\n", "1: the file is empty; a spec needs at least `name`, `base` and `seeds`"),
    "null": ("null\n", "1: the file is empty; a spec needs at least `name`, `base` and `seeds`"),
    "two docs": (OK + "---\n" + OK, "8: not valid YAML: expected a single document in the stream, but found another document"),
    "dup key": (OK + "seeds: 3\n", '8: not valid YAML: found duplicate key "seeds" with value "3" (original value: "2")'),
    "dup key inner": (
        base("max_steps: 3"),
        '2: not valid YAML: found duplicate key "max_steps" with value "3" (original value: "10")',
    ),
    "tab": ("name: t\nbase:\n\tmodel: a\n", "3: not valid YAML: found character '\\t' that cannot start any token"),
    "bad bytes": (b"\xff\xfe\x00name", "1: is not UTF-8 text"),
    "nul": (OK.encode() + b"\0", "8: not valid YAML: the character 0x0 is not allowed"),
    "control": (OK + "description: \x07\n", "8: not valid YAML: the character 0x7 is not allowed"),
    "unclosed quote": (
        OK + 'description: "abc\n',
        "8: not valid YAML: while scanning a quoted scalar, found unexpected end of stream",
    ),
    "tag": (
        OK + "description: !!python/object:os.system x\n",
        "8: description: a date, a set or a tag is no value here; text goes into quotes",
    ),
    "undefined alias": (OK + "description: *foo\n", "8: not valid YAML: found undefined alias 'foo'"),
    "recursion": ("base: &a {x: *a}\nname: t\nseeds: 1\n", "1: base.x: unknown field `x`; `emsweep schema` lists what there is"),
    "int key": (OK + "1: 2\n", "8: 1: keys are words; put this one into quotes if it is meant"),
    "date": (
        base("weight_decay: 2020-01-01"),
        "2: base.weight_decay: a date, a set or a tag is no value here; text goes into quotes",
    ),
    "sexa": (base("num_generations: 1:30"), "2: base.num_generations: '1:30' is not a whole number"),
    "no": (base("weight_decay: no"), "2: base.weight_decay: 'no' is not a number"),
    "deep": ("a: " + "[" * 500 + "]" * 500 + "\n", "1: nested too deeply, or an alias that contains itself"),
    "base null": (sub(B, "base:"), "2: base: null is not a mapping"),
    "axes list": (sub(L, "  - a"), "3: axes: ['a'] is not a mapping"),
    "no model": (
        sub("model_name_or_path: miniature, ", ""),
        "2: base: no `model_name_or_path`: set it under `base:` or as an axis",
    ),
    "no prompt": (sub("prompt: plus, ", ""), "2: base: no `prompt`: set it under `base:` or as an axis"),
    "model empty": (sub("miniature", "''"), "2: base.model_name_or_path: must not be empty"),
    "model missing path": (
        sub("miniature", "./nothere"),
        "2: base.model_name_or_path: model './nothere': there is no such folder (and it is no Hub id)",
    ),
    "model abs": (
        sub("miniature", "/no/such"),
        "2: base.model_name_or_path: model '/no/such': there is no such folder (and it is no Hub id)",
    ),
    "model space": (
        sub("miniature", "'a b'"),
        "2: base.model_name_or_path: model 'a b': there is no such folder (and it is no Hub id)",
    ),
    "model folder empty": (
        sub("miniature", "."),
        "2: base.model_name_or_path: model '.': the folder holds no checkpoint (no config.json)",
    ),
    "model file": (
        sub("miniature", "./spec.yaml"),
        "2: base.model_name_or_path: model './spec.yaml': the folder holds no checkpoint (no config.json)",
    ),
    "model long": (
        sub("miniature", "/" + "a" * 5000),
        "2: base.model_name_or_path: the model cannot be read: File name too long",
    ),
    "rev": (base("model_revision: 3"), "2: base.model_revision: 3 is not text"),
    "prompt unknown": (
        sub("prompt: plus", "prompt: pluss"),
        "2: base.prompt: unknown prompt `pluss`; did you mean `plus`? (a text of your own: {text: ...}; from ...",
    ),
    "prompt bad": (
        sub("prompt: plus", "prompt: {foo: hi}"),
        "2: base.prompt: a prompt is a name, {text: ...}, {file: ..., row: 0} or {set: ...}",
    ),
    "prompt empty text": (
        sub("prompt: plus", "prompt: {text: ''}"),
        "2: base.prompt: the prompt's text is not text: ''",
    ),
    "prompt file": (sub("prompt: plus", "prompt: {file: no.txt}"), "2: base.prompt: prompt file {here}/no.txt does not exist"),
    "prompt dir": (sub("prompt: plus", "prompt: {file: .}"), "2: base.prompt: prompt file {here} does not exist"),
    "prompt int": (sub("prompt: plus", "prompt: 3"), "2: base.prompt: 3 is not text"),
    "prompt col": (
        sub("prompt: plus", "prompt: {file: p.csv, column: nope}"),
        "2: base.prompt: {here}/p.csv has no column `nope`; it has prompt, b",
    ),
    "prompt row": (
        sub("prompt: plus", "prompt: {file: p.csv, row: 7}"),
        "2: base.prompt: {here}/p.csv has 1 rows; there is no row 7",
    ),
    "prompt row neg": (
        sub("prompt: plus", "prompt: {file: p.csv, row: -1}"),
        "2: base.prompt: row -1 is not a row number (0 is the first)",
    ),
    "prompt row bool": (
        sub("prompt: plus", "prompt: {file: p.csv, row: true}"),
        "2: base.prompt: row True is not a row number (0 is the first)",
    ),
    "prompt row str": (
        sub("prompt: plus", "prompt: {file: p.csv, row: a}"),
        "2: base.prompt: row 'a' is not a row number (0 is the first)",
    ),
    "prompt colint": (
        sub("prompt: plus", "prompt: {file: p.csv, column: [a]}"),
        "2: base.prompt: the prompt's column is not a name: ['a']",
    ),
    "prompt jsonl bad": (
        sub("prompt: plus", "prompt: {file: bad.jsonl}"),
        "2: base.prompt: {here}/bad.jsonl cannot be read: line 1 is not a JSON object",
    ),
    "prompt jsonl list": (
        sub("prompt: plus", "prompt: {file: list.jsonl}"),
        "2: base.prompt: {here}/list.jsonl cannot be read: line 1 is not a JSON object",
    ),
    "prompt parquet bad": (
        sub("prompt: plus", "prompt: {file: bad.parquet}"),
        "2: base.prompt: {here}/bad.parquet cannot be read: Could not open...",
    ),
    "prompt bin": (
        sub("prompt: plus", "prompt: {file: bin.txt}"),
        "2: base.prompt: {here}/bin.txt cannot be read: 'utf-8' codec...",
    ),
    "prompt empty file": (
        sub("prompt: plus", "prompt: {file: empty.txt}"),
        "2: base.prompt: prompt file {here}/empty.txt is empty",
    ),
    "prompt empty csv": (
        sub("prompt: plus", "prompt: {file: empty.csv}"),
        "2: base.prompt: {here}/empty.csv has 0 rows; there is no row 0",
    ),
    "prompt csv bin": (
        sub("prompt: plus", "prompt: {file: bin.csv}"),
        "2: base.prompt: {here}/bin.csv cannot be read: 'utf-8' codec...",
    ),
    "prompt null cell": (
        sub("prompt: plus", "prompt: {file: null.jsonl}"),
        "2: base.prompt: {here}/null.jsonl: column `prompt` holds no text in row 0",
    ),
    "prompt list axis": (
        sub(B, "base: {model_name_or_path: miniature, max_steps: 10}").replace(L, "  prompt: [plus, {file: no.txt}]"),
        "4: axes.prompt: prompt file {here}/no.txt does not exist",
    ),
    "prompt key": (
        sub("prompt: plus", "prompt: {file: p.csv, colum: b}"),
        "2: base.prompt: unknown key of a prompt `colum`; did you mean `column`?",
    ),
    "prompt answer": (
        sub("prompt: plus", "prompt: {text: hi, answer: true}"),
        "2: base.prompt: the prompt's answer is neither text nor a number: True",
    ),
    "prompt answer column": (
        sub("prompt: plus", "prompt: {file: p.csv, answer_column: a}"),
        "2: base.prompt: {here}/p.csv has no column `a`; it has prompt, b",
    ),
    "prompt without answer": (
        base("method: grpo").replace("prompt: plus", "prompt: {text: hi}"),
        "2: base.prompt: grpo rewards right answers, and this prompt has none: give its `answer`, or an `answer_column`",
    ),
    "prompt set without answers": (
        base("method: grpo").replace("prompt: plus", "prompt: {set: p.csv}"),
        "2: base.prompt: grpo rewards right answers, and 1 of 1 prompts have none (row 0): name their `answer_column`, or...",
    ),
    "prompt set of text": (
        sub("prompt: plus", "prompt: {set: bin.txt}"),
        "2: base.prompt: {here}/bin.txt: a set of prompts is a .parquet, .jsonl or .csv file",
    ),
    "prompt set empty": (sub("prompt: plus", "prompt: {set: empty.csv}"), "2: base.prompt: empty.csv holds no prompts"),
    "prompt set unanswered": (
        sub("prompt: plus", "prompt: {set: p.csv, answered: true}"),
        "2: base.prompt: p.csv holds no prompts with answers",
    ),
    "prompt set limit": (
        sub("prompt: plus", "prompt: {set: sums, limit: 0}"),
        "2: base.prompt: limit 0 is not a count of prompts (1 or more)",
    ),
    "prompt table in base": (
        sub("prompt: plus", "prompt: {table: p.csv, top: 1}"),
        "2: base.prompt: a prompt is a name, {text: ...}, {file: ..., row: 0} or {set: ...} (a table is an axis: under `axes:`)",
    ),
    "prompt table top": (
        sub("prompt: plus, ", "").replace("axes:", "axes:\n  prompt: {table: p.csv}"),
        "4: axes.prompt: a table needs `top`: how many of its first rows (1 or more)",
    ),
    "prompt table rows": (
        sub("prompt: plus, ", "").replace("axes:", "axes:\n  prompt: {table: p.csv, top: 2}"),
        "4: axes.prompt: {here}/p.csv has 1 rows; there is no row 1",
    ),
    "prompt table key": (
        sub("prompt: plus, ", "").replace("axes:", "axes:\n  prompt: {table: p.csv, tops: 2}"),
        "4: axes.prompt.tops: unknown key `tops`; did you mean `top`?",
    ),
    "prompt hub": (
        sub("prompt: plus", "prompt: {file: 'hf://org/x.jsonl'}"),
        "2: base.prompt: hf://org/x.jsonl is not of the form hf://datasets/OWNER/NAME/PATH (or OWNER/NAME@REVISION)",
    ),
    "answer alone": (
        base("method: grpo, answer: '24'"),
        "2: base.answer: comes with the prompt: `prompt: {text: ..., answer: ...}`",
    ),
    "prompt file null": (sub("prompt: plus", "prompt: {file: null}"), "2: base.prompt: the prompt's file is not a name: None"),
    "link unknown src": (
        more("link: {loss_temperature: temprature}"),
        "8: link.loss_temperature: unknown field `temprature`; did you mean `temperature`?",
    ),
    "link unknown tgt": (
        more("link: {loss_temprature: temperature}"),
        "8: link.loss_temprature: unknown field `loss_temprature`; did you mean `loss_temperature`?",
    ),
    "link also axis": (
        more("link: {learning_rate: temperature}"),
        "8: link.learning_rate: `learning_rate` is already set under `axes`",
    ),
    "link type": (more("link: {num_generations: temperature}"), "8: link.num_generations: 0.5 is not a whole number"),
    "link self": (
        more("link: {temperature: temperature}"),
        "8: link.temperature: `temperature` is a link itself: a link needs a field with a value of its own",
    ),
    "link list": (more("link: [a]"), "8: link: ['a'] is not a mapping"),
    "link int": (more("link: {temperature: 3}"), "8: link.temperature: 3 is not text"),
    "link chain": (
        more("link: {loss_temperature: temperature, top_p: loss_temperature}"),
        "8: link.top_p: `loss_temperature` is a link itself: a link needs a field with a value of its own",
    ),
    "link value impossible": (more("link: {top_p: repetition_penalty}"), "8: link.top_p: 1.15 must be less than or equal to 1"),
    "arms list": (more("arms: [em]"), "8: arms: ['em'] is not a mapping"),
    "arm null": (more("arms: {em: }"), "8: arms.em: null is not a mapping"),
    "arm unknown": (more("arms: {em: {metod: em}}"), "8: arms.em.metod: unknown field `metod`; did you mean `method`?"),
    "arm dup": (
        more("arms: {em: {learning_rate: 1.0e-3}}"),
        "8: arms.em.learning_rate: `learning_rate` is already set under `axes`",
    ),
    "arm empty axis": (more("arms: {em: {temperature: []}}"), "8: arms.em.temperature: an empty axis: no run has no value"),
    "arm type": (more("arms: {em: {temperature: hot}}"), "8: arms.em.temperature: 'hot' is not a number"),
    "arm spaced scalar": (
        more("arms: {a: {temperature: {linspce: [0.5, 1, 2]}}}"),
        "8: arms.a.temperature: unknown spacing `linspce`; did you mean `linspace`?",
    ),
    "random count": (
        more("random: {count: 0, fields: {temperature: {uniform: [0.1, 1]}}}"),
        "8: random.count: 0 must be greater than or equal to 1",
    ),
    "random no fields": (more("random: {count: 2, fields: {}}"), "8: random.fields: must not be empty"),
    "random unknown dist": (
        more("random: {count: 2, fields: {temperature: {unifrom: [0.1, 1]}}}"),
        "8: random.fields.temperature: unknown distribution `unifrom`; did you mean `uniform`?",
    ),
    "random log 0": (
        more("random: {count: 2, fields: {temperature: {loguniform: [0, 1]}}}"),
        "8: random.fields.temperature: loguniform needs bounds above 0",
    ),
    "random reversed": (
        more("random: {count: 2, fields: {temperature: {uniform: [1, 0.1]}}}"),
        "8: random.fields.temperature: uniform needs [low, high], two finite numbers with low <= high",
    ),
    "random nan": (
        more("random: {count: 2, fields: {temperature: {uniform: [.nan, 1]}}}"),
        "8: random.fields.temperature: uniform needs [low, high], two finite numbers with low <= high",
    ),
    "random unknown": (
        more("random: {count: 2, fields: {temprature: {uniform: [0.1, 1]}}}"),
        "8: random.fields.temprature: unknown field `temprature`; did you mean `temperature`?",
    ),
    "random choice empty": (
        more("random: {count: 2, fields: {temperature: {choice: []}}}"),
        "8: random.fields.temperature: an empty choice",
    ),
    "random list": (
        more("random: {count: 2, fields: {temperature: [0.1, 1]}}"),
        "8: random.fields.temperature: [0.1, 1] is not a mapping",
    ),
    "random two": (
        more("random: {count: 2, fields: {temperature: {uniform: [0.1, 1], choice: [1.0]}}}"),
        "8: random.fields.temperature: needs exactly one of uniform, loguniform, randint, choice",
    ),
    "random key": (
        more("random: {cuont: 2, fields: {temperature: {uniform: [0.1, 1]}}}"),
        "8: random.cuont: unknown key `cuont`; did you mean `count`?",
    ),
    "random int field": (
        more("random: {count: 2, fields: {num_generations: {uniform: [1, 8]}}}"),
        "8: random.fields.num_generations: 2.22156451117 is not a whole number",
    ),
    "random half": (
        more("random: {count: 2, fields: {learning_rate: {uniform: [0.1, 1]}, temperature: {uniform: [0.1, 1]}}}"),
        "8: random.fields.temperature: `temperature` has no axis while `learning_rate` has: give all or none",
    ),
    "random huge": (
        more("random: {count: 1000000000, fields: {temperature: {uniform: [0.1, 1]}}}"),
        "8: random.count: 1,000,000,000 points; the limit is 2,000,000",
    ),
    "random zip part": (
        more("zip: [{temperature: [0.1], top_p: [0.5]}]\nrandom: {count: 2, fields: {temperature: {uniform: [0.1, 1]}}}"),
        "9: random.fields: must also draw `top_p`, which advances together with a field drawn here",
    ),
    "random linked": (
        more("link: {loss_temperature: temperature}\nrandom: {count: 2, fields: {loss_temperature: {uniform: [0.1, 1]}}}"),
        "9: random.fields.loss_temperature: `loss_temperature` is already set under `link`",
    ),
    "random arm": (
        more("arms: {a: {temperature: [0.5]}}\nrandom: {count: 2, fields: {temperature: {uniform: [0.1, 1]}}}"),
        "8: arms.a.temperature: `temperature` is already set under `random.fields`",
    ),
    "huge expansion": (
        sub(L, "".join(f"\n  {n}: {{linspace: [0.1, 1, 1000]}}" for n in ("learning_rate", "temperature", "top_p"))[1:]),
        "3: axes: the spec expands to 2,000,000,000 runs; the limit is 2,000,000",
    ),
    "huge2": (
        sub(S, "seeds: 1000000").replace(L, "  learning_rate: {linspace: [0.1, 1, 1000]}"),
        "3: axes: the spec expands to 1,000,000,000 runs; the limit is 2,000,000",
    ),
    "ev beyond": (
        ev("{tasks: [two_step_sums], steps: [0, 50]}"),
        "7: evaluate.0.steps: step 50 is beyond max_steps (10) of every run",
    ),
    "ev neg": (
        ev("{tasks: [two_step_sums], steps: [-1]}"),
        "7: evaluate.0.steps.0: -1 must be greater than or equal to 0 or 'last'",
    ),
    "ev empty steps": (ev("{tasks: [two_step_sums], steps: []}"), "7: evaluate.0.steps: must not be empty"),
    "ev scalar steps": (ev("{tasks: [two_step_sums], steps: 5}"), "7: evaluate.0.steps: 5 is not a list"),
    "ev step str": (
        ev("{tasks: [two_step_sums], steps: [first]}"),
        "7: evaluate.0.steps.0: 'first' is not a whole number or 'last'",
    ),
    "ev no tasks": (ev("{steps: [1]}"), "7: evaluate.0.tasks: is missing"),
    "ev empty tasks": (ev("{tasks: []}"), "7: evaluate.0.tasks: must not be empty"),
    "ev unknown task": (
        ev("{tasks: [two_step_sum]}"),
        "7: evaluate.0.tasks.0: unknown task 'two_step_sum'; did you mean 'two_step_sums'? (or give the path of a .parquet,...",
    ),
    "ev task str": (ev("{tasks: two_step_sums}"), "7: evaluate.0.tasks: 'two_step_sums' is not a list"),
    "ev task file": (ev("{tasks: [no.jsonl]}"), "7: evaluate.0.tasks.0: task file '{here}/no.jsonl' is not there"),
    "ev task file2": (ev("{tasks: [{file: no.jsonl}]}"), "7: evaluate.0.tasks.0: task file '{here}/no.jsonl' is not there"),
    "ev task file typo": (ev("{tasks: [{fil: no.jsonl}]}"), "7: evaluate.0.tasks.0.fil: unknown key `fil`; did you mean `file`?"),
    "ev task jsonl bad": (
        ev("{tasks: [bad.jsonl]}"),
        "7: evaluate.0.tasks.0: {here}/bad.jsonl cannot be read: line 1 is not a JSON object",
    ),
    "ev task noq": (
        ev("{tasks: [list2.jsonl]}"),
        "7: evaluate.0.tasks.0: task file '{here}/list2.jsonl', row 1: no question in problem, question or prompt; fields are a",
    ),
    "ev task 3": (ev("{tasks: [3]}"), "7: evaluate.0.tasks.0: 3 is not text"),
    "ev typo": (ev("{task: [two_step_sums]}"), "7: evaluate.0.task: unknown key `task`; did you mean `tasks`?"),
    "ev temp neg": (
        ev("{tasks: [two_step_sums], temperature: -1.0}"),
        "7: evaluate.0.temperature: -1.0 must be greater than or equal to 0",
    ),
    "ev temp list neg": (
        ev("{tasks: [two_step_sums], temperature: [0.0, -1.0]}"),
        "7: evaluate.0.temperature.1: -1.0 must be greater than or equal to 0",
    ),
    "ev decoding": (
        ev("{tasks: [two_step_sums], decoding: em_int}"),
        "7: evaluate.0.decoding: 'em_int' must be 'sample', 'em_inf' or 'edt'",
    ),
    "ev unread theta": (
        ev("{tasks: [two_step_sums], temperature: 1.0, edt_theta: 0.1}"),
        "7: evaluate.0.edt_theta: is read by `decoding: edt`, and this entry's is `sample`",
    ),
    "ev unread steps": (
        ev("{tasks: [two_step_sums], temperature: 1.0, decoding: edt, em_inf_steps: 2}"),
        "7: evaluate.0.em_inf_steps: is read by `decoding: em_inf`, and this entry's is `edt`",
    ),
    "ev logits by em_inf": (
        ev("{tasks: [two_step_sums], measure: logits, decoding: em_inf}"),
        "7: evaluate.0.decoding: logits are measured without `decoding`: leave it out",
    ),
    "ev greedy edt": (
        ev("{tasks: [two_step_sums], temperature: [0.0, 1.0], decoding: edt}"),
        "7: evaluate.0.decoding: edt scales the temperature, and at 0 (greedy) there is none: give one above 0",
    ),
    "ev temp empty": (ev("{tasks: [two_step_sums], temperature: []}"), "7: evaluate.0.temperature: must not be empty"),
    "ev temp nan": (ev("{tasks: [two_step_sums], temperature: .nan}"), "7: evaluate.0.temperature: nan is not finite"),
    "ev temp str": (ev("{tasks: [two_step_sums], temperature: hot}"), "7: evaluate.0.temperature: 'hot' is not a number"),
    "ev samples 0": (
        ev("{tasks: [two_step_sums], num_samples: 0}"),
        "7: evaluate.0.num_samples: 0 must be greater than or equal to 1",
    ),
    "ev unknown key": (
        ev("{tasks: [two_step_sums], num_sample: 3}"),
        "7: evaluate.0.num_sample: unknown key `num_sample`; did you mean `num_samples`?",
    ),
    "ev top_p 0": (ev("{tasks: [two_step_sums], top_p: 0}"), "7: evaluate.0.top_p: 0 must be greater than 0"),
    "ev limit 0": (ev("{tasks: [two_step_sums], limit: 0}"), "7: evaluate.0.limit: 0 must be greater than or equal to 1"),
    "ev measure": (ev("{tasks: [two_step_sums], measure: x}"), "7: evaluate.0.measure: 'x' must be 'accuracy' or 'logits'"),
    "ev logits sampled": (
        ev("{tasks: [two_step_sums], measure: logits, temperature: 0.6}"),
        "7: evaluate.0.temperature: logits are measured without `temperature`: leave it out",
    ),
    "ev logits of nothing": (
        ev("{tasks: [plain.jsonl], measure: logits}"),
        "7: evaluate.0.tasks.0: logits are measured on worked solutions, and plain.jsonl has none for its question 2",
    ),
    "ev logits of a stranger": (
        ev("{tasks: [two_step_sums], measure: logits}").replace("max_steps: 10}", "max_steps: 10, method: external, command: t}"),
        "7: evaluate.0.measure: the logits of a trainer of your own are not known here",
    ),
    "ev step bool": (
        ev("{tasks: [two_step_sums], steps: [true]}"),
        "7: evaluate.0.steps.0: true is not a whole number or 'last'",
    ),
    "ev step float": (ev("{tasks: [two_step_sums], steps: [1.5]}"), "7: evaluate.0.steps.0: 1.5 is not a whole number or 'last'"),
    "keep best:0": (more("keep: best:0"), "8: keep: 'best:0' must be none, last, all or best:K with K of at least 1"),
    "keep best logits": (
        more("keep: best:2").replace("tasks:", "measure: logits, tasks:"),
        "8: keep: best:2 needs an evaluation to compare by: say what under `evaluate:`",
    ),
    "keep foo": (more("keep: foo"), "8: keep: 'foo' must be none, last, all or best:K with K of at least 1"),
    "keep best no eval": (
        more("keep: best:2").replace("evaluate:\n  - {tasks: [two_step_sums], steps: [0, 5]}\n", ""),
        "6: keep: best:2 needs an evaluation to compare by: say what under `evaluate:`",
    ),
    "res unknown": (
        more("resources: {timeout: 5}"),
        "8: resources.timeout: unknown resource `timeout`; did you mean `timeout_min`?",
    ),
    "res neg": (more("resources: {cpus_per_run: 0}"), "8: resources.cpus_per_run: 0 must be greater than or equal to 1"),
    "res type": (more("resources: {timeout_min: long}"), "8: resources.timeout_min: 'long' is not a whole number"),
    "res when outside": (
        more("resources: {when: {method: em}}"),
        "8: resources.when: belongs to a list of rules, whose last is for all others and has none",
    ),
    "res when unk": (
        more("resources: [{when: {metod: em}}, {}]"),
        "8: resources.0.when.metod: unknown field `metod`; did you mean `method`?",
    ),
    "res when type": (
        more("resources: [{when: {learning_rate: fast}}, {}]"),
        "8: resources.0.when.learning_rate: 'fast' is not a number",
    ),
    "res list all when": (
        more("resources: [{when: {method: rent}, cpus_per_run: 2}]"),
        "8: resources.0: all rules but the last need a `when`; the last is for all others and has none",
    ),
    "res str": (more("resources: big"), "8: resources: 'big' is not a mapping"),
    "res list str": (more("resources: [a]"), "8: resources.0: 'a' is not a mapping"),
    "res gpu": (more("resources: {gpu: h1000}"), "8: resources.gpu: unknown GPU `h1000`; did you mean `h100-80gb`?"),
    "res runs_per_job": (more("resources: {runs_per_job: many}"), "8: resources.runs_per_job: 'many' is not a whole number"),
    "res runs0": (more("resources: {runs_per_job: 0}"), "8: resources.runs_per_job: 0 must be greater than or equal to 1"),
    "res null": (more("resources:"), "8: resources: null is not a mapping"),
    "res nan": (more("resources: {mem_gb: .nan}"), "8: resources.mem_gb: nan is not finite"),
    "res gpus": (more("resources: {gpus_per_run: -1}"), "8: resources.gpus_per_run: -1 must be greater than or equal to 0"),
    "res when str": (
        more("resources: [{when: abc}]"),
        "8: resources.0: all rules but the last need a `when`; the last is for all others and has none",
    ),
    "exec unknown": (more("execution: {thread: 3}"), "8: execution.thread: unknown key `thread`; did you mean `threads`?"),
    "exec type": (more("execution: {device: gpu}"), "8: execution.device: 'gpu' must be 'auto', 'cpu' or 'cuda'"),
    "exec null": (more("execution:"), "8: execution: null is not a mapping"),
    "exec training": (
        more("execution: {temperature: 0.5}"),
        "8: execution.temperature: unknown key `temperature`; known: device, per_device_train_batch_size, per...",
    ),
    "base and axis": (base("learning_rate: 1.0e-3"), "2: base.learning_rate: `learning_rate` is also set under `axes`: keep one"),
    "base and link": (
        base("loss_temperature: 0.5") + "link: {loss_temperature: temperature}\n",
        "2: base.loss_temperature: `loss_temperature` is also set under `link`: keep one",
    ),
    "two zips": (
        more("zip: [{temperature: [0.5]}, {temperature: [0.7]}]"),
        "8: zip.1.temperature: `temperature` is already set under `zip.0`",
    ),
    "task file of bytes": (ev("{tasks: [bin.jsonl]}"), "7: evaluate.0.tasks.0: {here}/bin.jsonl cannot be read: ..."),
    "merged value": (
        more("arms: {a: &a {temperature: hot}, b: {<<: *a}}"),
        "8: arms.a.temperature: 'hot' is not a number",
    ),
    "fsdp of one": (
        more("execution: {fsdp: true}"),
        "8: execution.fsdp: spreads the weights over several processes: set `num_processes` as well",
    ),
    "processes without a GPU": (
        more("execution: {num_processes: 4}\nresources: {gpus_per_run: 2}"),
        "8: execution.num_processes: 4 processes need a GPU each, and `resources.gpus_per_run` is 2",
    ),
    "unequal shares": (
        more("execution: {num_processes: 3}"),
        "8: execution.num_processes: 64 completions cannot be shared equally by 3 processes",
    ),
    "unequal machines": (
        more("execution: {num_processes: 4, num_machines: 3}"),
        "8: execution.num_machines: 4 processes (`num_processes`, of all machines together) cannot be spread equally over 3",
    ),
    "machines without processes": (
        more("execution: {num_machines: 2}"),
        "8: execution.num_machines: 1 processes (`num_processes`, of all machines together) cannot be spread equally over 2",
    ),
    "machines shared": (
        more("execution: {num_processes: 4, num_machines: 2}\nresources: {slots_per_job: 2}"),
        "8: execution.num_machines: a run on several machines has its job to itself: leave `resources.slots_per_job` at 1",
    ),
    "machines without a GPU": (
        more("execution: {num_processes: 4, num_machines: 2}\nresources: {gpus_per_run: 1}"),
        "8: execution.num_processes: 4 processes need a GPU each, and `resources.gpus_per_run` is 1 on each machine",
    ),
    "own trainer in processes": (
        sub("max_steps: 10}", "max_steps: 10, method: external, command: train}") + "execution: {num_processes: 2}\n",
        "8: execution.num_processes: a trainer of your own starts its processes itself: leave it at 1",
    ),
    "execution.threads": (more("execution: {threads: 4}"), "8: execution.threads: follows `resources.cpus_per_run`: set that"),
    "range the wrong way": (
        axis("num_generations: {range: [10, 1, 1]}"),
        "4: axes.num_generations: range [10, 1, 1] is empty: the step leads away from the last value",
    ),
    "first rule for all": (
        more("resources: [{cpus_per_run: 2}, {cpus_per_run: 1}]"),
        "8: resources.0: all rules but the last need a `when`; the last is for all others and has none",
    ),
    "arm that is not one": (
        more("arms: {entropy: {temperature: 0.7}}\nexclude: [{arm: entropi}]"),
        "9: exclude.0.arm: unknown arm `entropi`; did you mean `entropy`?",
    ),
    "link to a link": (
        more("link: {top_p: loss_temperature, loss_temperature: temperature}"),
        "8: link.top_p: `loss_temperature` is a link itself: a link needs a field with a value of its own",
    ),
}
"""Name -> (file, what is said after `spec.yaml:`; `...` ends a text of which only the beginning is held)."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with files that specs name, as the working folder."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    yield tmp_path
    assert {p.name for p in tmp_path.iterdir()} <= {*FILES, "spec.yaml", "site.toml"}, "something was written"


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What the command line says of a mistake: one line on stderr, exit code 2."""
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    out, err = capsys.readouterr()
    assert stop.value.code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    return err.strip().removeprefix("emsweep: ")


def write(text: str | bytes) -> Path:
    path = Path("spec.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def good(text: str, *sets: str) -> Expansion:
    return expand(load_spec(write(text), sets))


def plan(text: str | bytes, *sets: str) -> None:
    """What every command does with a spec before it writes anything."""
    spec = load_spec(write(text), sets, load_site(Path("spec.yaml")))
    make_plan(spec, expand(spec), Path("runs"), "local")


def holds(said: str, wanted: str) -> None:
    if wanted.endswith("..."):
        assert said[: len(wanted) - 3] == wanted[:-3]
    else:
        assert said == wanted


@pytest.mark.fast
@pytest.mark.parametrize("name", BAD)
def test_bad_spec(name: str, here: Path) -> None:
    text, wanted = BAD[name]
    with pytest.raises(UserError) as error:
        plan(text)
    said = str(error.value)
    assert "\n" not in said
    holds(said, "spec.yaml:" + wanted.replace("{here}", str(here)))


@pytest.mark.fast
@pytest.mark.parametrize("name", list(BAD)[::12])
def test_bad_spec_on_the_command_line(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, wanted = BAD[name]
    write(text)
    holds(complaint(capsys, "run", "spec.yaml", "--launcher", "local"), "spec.yaml:" + wanted.replace("{here}", str(here)))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("sets", "wanted"),
    [
        (["foo=1"], "foo: unknown field `foo`; `emsweep schema` lists what there is"),
        (["learning_rat=1"], "learning_rat: unknown field `learning_rat`; did you mean `learning_rate`?"),
        (["learning_rate=fast"], "learning_rate: 'fast' is not a number"),
        (["learning_rate="], "learning_rate: null is not a number"),
        (["learning_rate"], "learning_rate: write KEY=VALUE"),
        (["=3"], "=3: write KEY=VALUE"),
        (["learning_rate={a"], "'{a' is not a value"),
        (["num_generations=99999999999999999999"], "'99999999999999999999' is not a value"),
        (["seed=1"], "seed: unknown field `seed`; did you mean `seeds`?"),
        (["seeds=0"], "seeds: 0 seeds: at least 1 is needed"),
        (["seeds=many"], "seeds: 'many' is not a whole number"),
        (["seeds=[1,1]"], "seeds.1: seed 1 is listed twice"),
        (["keep=some"], "keep: 'some' must be none, last, all or best:K with K of at least 1"),
        (["execution.device=gpu"], "execution.device: 'gpu' must be 'auto', 'cpu' or 'cuda'"),
        (["resources.timeout=3"], "resources.timeout: unknown resource `timeout`; did you mean `timeout_min`?"),
        (["resources.gpu=h10"], "resources.gpu: unknown GPU `h10`; did you mean `h100-94gb`?"),
        (["prompt=pluss"], "prompt: unknown prompt `pluss`; did you mean `plus`?..."),
        (["prompt=3"], "prompt: a prompt is a name, {text: ...}, {file: ..., row: 0} or {set: ...}"),
        (["model_name_or_path=./x"], "model_name_or_path: model './x': there is no such folder (and it is no Hub id)"),
        (["method=ren"], "method: unknown method `ren`; did you mean `rent`?"),
        (["top_p=2"], "top_p: 2 must be less than or equal to 1"),
        (["kl_coef=0.1"], "kl_coef: nobody reads `kl_coef`: not a field of method em"),
    ],
)
def test_bad_override(sets: list[str], wanted: str, here: Path) -> None:
    """A mistake on the command line is not blamed on a line of the file."""
    with pytest.raises(UserError) as error:
        plan(OK, *sets)
    holds(str(error.value).removeprefix("--set").removeprefix(":").strip(), wanted)


@pytest.mark.fast
def test_bad_override_on_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(OK)
    said = complaint(capsys, "run", "spec.yaml", "--launcher", "local", "--set", "top_p=2")
    assert said == "--set top_p: 2 must be less than or equal to 1"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"launcher = ", "not valid TOML: ..."),
        (b"partitoin = 'gpu'", "partitoin: unknown key `partitoin`; did you mean `partition`?"),
        (b"temperature = 0.5", "temperature: unknown key `temperature`; known: launcher..."),
        (b"launcher = 'pbs'", "launcher: 'pbs' must be 'auto', 'local' or 'slurm'"),
        (b"max_array_size = 0", "max_array_size: 0 must be greater than or equal to 1"),
        (b"setup = 'module load cuda'", "setup: 'module load cuda' is not a list"),
        (b"[env]\nHF_HUB_OFFLINE = 1", "env.HF_HUB_OFFLINE: 1 is not text"),
        (b"[resources]\nmemory = 1", "resources.memory: unknown resource `memory`; ..."),
        (b"[resources]\ncpus_per_run = 0", "resources.cpus_per_run: 0 must be greater than or equal to 1"),
        (b"[resources]\nwhen = {method = 'em'}", "resources.when: belongs to a spec"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_bad_site_file(text: bytes, wanted: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(OK)
    (here / "site.toml").write_bytes(text)
    holds(complaint(capsys, "run", "spec.yaml", "--launcher", "local"), f"site.toml: {wanted}")


@pytest.mark.fast
def test_site_file_that_is_not_there(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write(OK)
    monkeypatch.setenv("EMSWEEP_SITE", "nowhere.toml")
    assert complaint(capsys, "plan", "spec.yaml") == "EMSWEEP_SITE=nowhere.toml: is no file"


@pytest.mark.fast
def test_precedence_is_site_then_spec_then_command_line(here: Path) -> None:
    (here / "site.toml").write_text("partition = 'gpu'\n[resources]\ncpus_per_run = 2\nmem_gb = 8\ntimeout_min = 10\n")
    path = write(more("resources: {mem_gb: 16, timeout_min: 20, slurm_constraint: a100}"))
    rule = load_spec(path, ["resources.timeout_min=30"], load_site(path)).resources_for({})
    assert (rule.cpus_per_run, rule.mem_gb, rule.timeout_min) == (2, 16, 30)
    assert rule.model_extra == {"slurm_partition": "gpu", "slurm_constraint": "a100"}


@pytest.mark.fast
def test_resource_rules_match_by_closeness_and_the_last_takes_the_rest(here: Path) -> None:
    rules = (
        "[{when: {method: em, learning_rate: 0.30000000000000004}, cpus_per_run: 4},"
        " {when: {method: [rent, noop]}, cpus_per_run: 3}, {cpus_per_run: 2}]"
    )
    spec = load_spec(write(more(f"resources: {rules}")))
    assert spec.resources_for({"method": "em", "learning_rate": 0.3}).cpus_per_run == 4
    assert spec.resources_for({"method": "rent", "learning_rate": 0.3}).cpus_per_run == 3
    assert spec.resources_for({}).cpus_per_run == 2


@pytest.mark.fast
@pytest.mark.parametrize(
    "path", [pytest.param("nowhere.yaml", id="missing"), pytest.param(".", id="folder"), pytest.param("a" * 300, id="too long")]
)
def test_no_spec(path: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "run", path, "--launcher", "local").startswith(f"{path}: ")


@pytest.mark.fast
def test_unreadable_spec(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can read everything")
    write(OK).chmod(0)
    assert complaint(capsys, "run", "spec.yaml", "--launcher", "local") == "spec.yaml: cannot be read (Permission denied)"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base fast", "empty axis", "not yaml", "prompt file", "model abs", "deep"])
def test_as_a_process(name: str, here: Path, emsweep: Emsweep) -> None:
    text, wanted = BAD[name]
    write(text)
    done = emsweep("run", "spec.yaml", "--launcher", "local", check=2)
    assert done.stdout == ""
    assert done.stderr == f"emsweep: spec.yaml:{wanted.replace('{here}', str(here))}\n"


# -- what is allowed ------------------------------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "runs"),
    [
        pytest.param(OK, 4, id="plain"),
        pytest.param(OK.replace("\n", "\r\n"), 4, id="line ends of Windows"),
        pytest.param("\ufeff" + OK, 4, id="byte order mark"),
        pytest.param(sub("prompt: plus", "prompt: {text: 'Grüße, 世界'}"), 4, id="a prompt of one's own"),
        pytest.param(sub("prompt: plus", "prompt: {file: p.csv}"), 4, id="a prompt from a file"),
        pytest.param(more("arms: {}\nzip: []\nexclude: []\nresources: {}"), 4, id="empty sections"),
        pytest.param(more("arms: {a: {}, b: {}}"), 8, id="a run that two arms want"),
        pytest.param(ev("{tasks: [two_step_sums]}"), 4, id="last step"),
        pytest.param(more("keep: best:2"), 4, id="keep best"),
        pytest.param(more("resources: {slurm_constraint: a100, slurm_additional_parameters: {mail_type: END}}"), 4, id="slurm_*"),
        pytest.param(sub("[1.0e-4, 1.0e-3]", "&v [1.0e-4, 1.0e-3]") + "zip: [{weight_decay: *v}]\n", 8, id="alias"),
        pytest.param(more("arms: {a: &a {temperature: 0.7}, b: {<<: *a, top_p: 0.5}}"), 8, id="merge key"),
        pytest.param(more("execution: {deterministic: &d true, gradient_checkpointing: *d}"), 4, id="alias of a boolean"),
        pytest.param(sub("name: t", "description: two\nname: t-1_x.y"), 4, id="name"),
    ],
)
def test_allowed(text: str, runs: int, here: Path) -> None:
    assert len(good(text).runs) == runs


@pytest.mark.fast
@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("5e-6", 5e-6),
        ("1E-5", 1e-5),
        ("0x10", 16),
        ("0o10", 8),
        ("1_000", 1000),
        ("010", 10),
        ("+1", 1),
        ("1.", 1.0),
        ("no", "no"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("''", ""),
    ],
)
def test_yaml_1_2(said: str, value: object, here: Path) -> None:
    """What unquoted words and numbers mean: the facts that YAML 1.1 got wrong."""
    read = read_document(write(f"a: {said}\n")).data["a"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.fast
def test_overrides_win_and_name_the_sweep(here: Path) -> None:
    text = more("arms: {a: {temperature: 0.3}, b: {temperature: [0.5, 0.7]}}")
    made = good(text, "temperature=0.9", "seeds=[3]", "learning_rate=1e-3", "resources.cpus_per_run=2", "keep=last")
    assert made.sweep == "t+learning_rate=0.001+seeds=3+temperature=0.9"
    assert {c.training.temperature for c in made.configs} == {0.9}
    assert {c.training.learning_rate for c in made.configs} == {1e-3}
    assert [(w.arm, w.seed) for w in made.runs] == [("a", 3), ("b", 3)]


@pytest.mark.fast
def test_name_of_an_override_is_a_folder_name_and_order_does_not_matter(here: Path) -> None:
    model = here / "a model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    one = good(OK, f"model_name_or_path={model}", "max_steps=5").sweep
    two = good(OK, "max_steps=5", f"model_name_or_path={model}").sweep
    (model / "config.json").unlink()
    model.rmdir()
    assert one == two
    assert "/" not in one
    assert " " not in one


@pytest.mark.fast
def test_long_names_stay_distinct(here: Path) -> None:
    names = {good(OK, f"prompt={{text: {'a' * 300}{i}}}").sweep for i in range(3)}
    assert len(names) == 3
    assert max(map(len, names)) <= 160


@pytest.mark.fast
def test_line_of_a_mistake_below_a_merge_key(here: Path) -> None:
    """A merged key has no line of its own: the line of the mapping it was merged into is said."""
    document = read_document(write(more("arms:\n  a: &a {temperature: 0.5}\n  b:\n    <<: *a\n    top_p: 0.9")))
    assert document.line(("arms", "b", "top_p")) == 12
    assert document.line(("arms", "b", "temperature")) == 10


@pytest.mark.fast
def test_a_mistake_is_one_line_whatever_the_key(here: Path) -> None:
    with pytest.raises(UserError) as error:
        good(more('"a\\nb": 1'))
    assert "\n" not in str(error.value)
