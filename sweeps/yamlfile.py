"""YAML 1.2 with line numbers: `5e-6` is a number, `no` is a word, and every mistake can be pointed at."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scalarbool import ScalarBoolean

from em_core.errors import UserError

Path_ = tuple[str | int, ...]


class SpecError(Exception):
    """A mistake at a place of the document. `Document.error` turns it into the line a person reads."""

    def __init__(self, path: Path_, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


@dataclass(frozen=True)
class Document:
    """A YAML mapping: plain Python data, and the tree that still knows its lines.

    `overridden` are the places that the command line set: a mistake there is none of the file's. `moved` says where keys of the
    spec stand that were taken from elsewhere in the document (`sweeps.variants`).
    """

    path: Path
    text: str
    data: dict[str, Any]
    tree: CommentedMap
    overridden: frozenset[Path_] = frozenset()
    moved: Mapping[str, Path_] = field(default_factory=dict)

    def error(self, mistake: SpecError) -> UserError:
        """`file:line: what.is.wrong: message`, or `--set what.is.wrong: message`."""
        path = self.moved.get(str(mistake.path[0]), mistake.path[:1]) + mistake.path[1:] if mistake.path else ()
        place = ".".join(str(p) for p in path)
        said = f"{place}: {mistake.message}" if place else mistake.message
        said = " ".join(said.split("\n"))  # a key may hold a line end; a mistake stays one line
        if any(mistake.path[: len(o)] == o for o in self.overridden):
            return UserError(f"--set {said}")
        return UserError(f"{self.path}:{self.line(path)}: {said}")

    def line(self, path: Sequence[str | int]) -> int:
        """The line (1-based) of the deepest part of `path` that is in the document."""
        node: Any = self.tree
        line = 1
        for part in path:
            if isinstance(node, CommentedMap) and part in node:
                if part in (node.lc.data or ()):  # a merged key (`<<`) has no line of its own
                    line = node.lc.key(part)[0] + 1
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line = node.lc.item(part)[0] + 1
            else:
                break
            node = node[part]
        return line


def read_document(path: Path, text: str | None = None) -> Document:
    """Read a YAML mapping: the file, or the `text` it had once.

    Raises `UserError` for a missing file, a directory, broken YAML, or anything but a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8") if text is None else text
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory, not a spec") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{error.object.count(10, 0, error.start) + 1}: is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        raise UserError(f"{path}:{_yaml_complaint(error)}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}:{line}: not valid YAML: the character {error.character:#x} is not allowed") from None
    except (YAMLError, ValueError) as error:
        raise UserError(f"{path}:1: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UserError(f"{path}:1: {_TOO_DEEP}") from None
    if tree is None:
        raise UserError(f"{path}:1: the file is empty; a spec needs at least `name`, `base` and `seeds`")
    if not isinstance(tree, CommentedMap):
        raise UserError(f"{path}:1: a spec is a mapping of keys to values, not {_kind(tree)}")
    document = Document(path, text, {}, tree)
    try:
        document.data.update(plain(tree))
    except SpecError as mistake:
        raise document.error(mistake) from None
    except RecursionError:
        raise UserError(f"{path}:1: {_TOO_DEEP}") from None
    return document


_TOO_DEEP = "nested too deeply, or an alias that contains itself"


def read_scalar(text: str) -> Any:
    """A value typed on the command line, read as YAML (`1e-3` is a number, `[1, 2]` a list). Raises `UserError`."""
    try:
        return plain(YAML(typ="rt").load(text))
    except (YAMLError, ValueError, SpecError, RecursionError):
        raise UserError(f"--set: {text!r} is not a value") from None


def plain(node: Any, path: Path_ = ()) -> Any:
    """The same data without ruamel's types. Raises `SpecError` for what YAML can say and a spec cannot."""
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, str):
                raise SpecError((*path, key), "keys are words; put this one into quotes if it is meant")
        return {str(k): plain(v, (*path, str(k))) for k, v in node.items()}
    if isinstance(node, list):
        return [plain(v, (*path, i)) for i, v in enumerate(node)]
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, ScalarBoolean):  # a boolean with an anchor
        return bool(node)
    if isinstance(node, int) and abs(node) >= 2**63:
        raise SpecError(path, "the number is too large (64 bits)")
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    raise SpecError(path, "a date, a set or a tag is no value here; text goes into quotes")


def _yaml_complaint(error: MarkedYAMLError) -> str:
    """`line: not valid YAML: what is wrong`. A quote or bracket that is never closed is shown where it opens."""
    problem, context = str(error.problem or ""), str(error.context or "")
    mark = error.problem_mark or error.context_mark
    if "end of stream" in problem and error.context_mark:
        mark = error.context_mark
        problem = f"{context}, {problem}"
    if problem.startswith("but "):
        problem = f"{context}, {problem}"
    return f"{mark.line + 1 if mark else 1}: not valid YAML: {' '.join((problem or context).split())}"


def _kind(value: Any) -> str:
    text = " ".join(str(value).split())
    return "a list" if isinstance(value, list) else f"`{text if len(text) < 60 else text[:57] + '...'}`"


def as_yaml(data: Mapping[str, Any], comment: str) -> str:
    """A document under a line of comment."""
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 1000
    yaml.dump(dict(data), text)
    return f"# {comment}\n{text.getvalue()}"
