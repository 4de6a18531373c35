"""YAML 1.2 with line numbers: `5e-6` is a number, `no` is a word, and every mistake can be pointed at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

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
    """A YAML mapping: plain Python data, and the tree that still knows its lines."""

    path: Path
    text: str
    data: dict[str, Any]
    tree: CommentedMap

    def error(self, mistake: SpecError) -> UserError:
        """`file:line: what.is.wrong: message`."""
        place = ".".join(str(p) for p in mistake.path)
        return UserError(f"{self.path}:{self.line(mistake.path)}: {place + ': ' if place else ''}{mistake.message}")

    def line(self, path: Sequence[str | int]) -> int:
        """The line (1-based) of the deepest part of `path` that is in the document."""
        node: Any = self.tree
        line = 1
        for part in path:
            if isinstance(node, CommentedMap) and part in node:
                line = node.lc.key(part)[0] + 1
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line = node.lc.item(part)[0] + 1
            else:
                break
            node = node[part]
        return line


def read_document(path: Path) -> Document:
    """Read a YAML mapping. Raises `UserError` for a missing file, a directory, broken YAML, or anything but a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory, not a spec") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(str(error.problem or error.context or "cannot be read").split())
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {what}") from None
    except (YAMLError, ValueError) as error:
        raise UserError(f"{path}:1: not valid YAML: {str(error).splitlines()[0]}") from None
    if tree is None:
        raise UserError(f"{path}:1: the file is empty; a spec needs at least `name`, `base` and `seeds`")
    if not isinstance(tree, CommentedMap):
        raise UserError(f"{path}:1: a spec is a mapping of keys to values, not {_kind(tree)}")
    return Document(path, text, plain(tree), tree)


def read_scalar(text: str) -> Any:
    """A value typed on the command line, read as YAML (`1e-3` is a number, `[1, 2]` a list). Raises `UserError`."""
    try:
        return plain(YAML(typ="rt").load(text))
    except (YAMLError, ValueError):
        raise UserError(f"--set: {text!r} is not a value") from None


def plain(node: Any) -> Any:
    """The same data without ruamel's types."""
    if isinstance(node, dict):
        return {plain(k): plain(v) for k, v in node.items()}
    if isinstance(node, list):
        return [plain(v) for v in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"{type(plain(value)).__name__} {plain(value)!r}"
