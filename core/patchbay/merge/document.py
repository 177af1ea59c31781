"""YAML from outside as plain values that know where they were written. Strict, bounded, and nothing is constructed.

Aliases, tags and keys that are given twice are refused. Knows no recipe: whoever reads a value says what it may be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

import yaml  # type: ignore[import-untyped]

from patchbay.errors import InvalidRecipe

MAX_BYTES = 1 << 16
MAX_DEPTH = 8  # of nested lists and mappings; a mergekit document needs 6
MAX_NODES = 10_000  # what can be read in a third of a second
_TAG = "tag:yaml.org,2002:"
_KEY = re.compile("[A-Za-z_][A-Za-z0-9_]{0,63}")
_TRUE, _FALSE = frozenset({"true", "yes", "on"}), frozenset({"false", "no", "off"})
# YAML 1.1 reads 1e-3 as text; whoever writes it means a number.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_OCTAL = re.compile("[+-]?0[0-9]+")  # 010 is 8 in YAML 1.1, and 08 text: neither is what it looks like

_RESOLVER = yaml.resolver.Resolver()

Content = str | list["Node"] | dict[str, "Node"] | None


@dataclass(frozen=True, slots=True)
class Node:
    """`content` is a scalar as it was written, a list, a mapping, or None for null.

    `path` is as `models.0.parameters`; `is_quoted` text is never a number, true or false. `line` and `column` count
    from 1.
    """

    content: Content
    path: str
    line: int
    column: int
    is_quoted: bool = False

    def fail(self, reason: str) -> NoReturn:
        """Raises InvalidRecipe that says where."""
        _fail(reason, self.line, self.column, self.path or None)

    def mapping(self, known: Collection[str] | None = None) -> dict[str, Node]:
        """Without keys whose value is null. Raises InvalidRecipe for another thing, and for keys that are not `known`,
        where these are given.
        """
        if not isinstance(self.content, dict):
            self.fail(f"{self.path or 'the document'} is a mapping, such as 'weight: 0.5'")
        for key, node in self.content.items():
            if known is not None and key not in known:
                node.fail(f"there is no field {key!r} here; the fields are {', '.join(known)}")
        return {key: node for key, node in self.content.items() if node.content is not None}

    def items(self) -> list[Node]:
        """Raises InvalidRecipe for what is no list."""
        if not isinstance(self.content, list):
            self.fail(f"{self.path} is a list")
        return self.content

    def text(self) -> str:
        """Raises InvalidRecipe for what is no scalar, or has no characters."""
        if not isinstance(self.content, str) or not self.content:
            self.fail(f"{self.path} is text")
        return self.content

    @property
    def is_number(self) -> bool:
        return isinstance(self.content, str) and not self.is_quoted and bool(_NUMBER.fullmatch(self.content))

    @property
    def is_flag(self) -> bool:
        return isinstance(self.content, str) and not self.is_quoted and self.content.lower() in _TRUE | _FALSE

    def number(self, bound: float = math.inf) -> float:
        """Raises InvalidRecipe for what is no finite number from -bound to bound, or might be an octal one."""
        if self.is_number and _OCTAL.fullmatch(self.text()):
            self.fail(f"{self.path} begins with 0, which YAML 1.1 takes for octal; write the number without that 0")
        if not self.is_number or not math.isfinite(number := float(self.text())):
            self.fail(f"{self.path} is a finite number")
        if abs(number) > bound:
            self.fail(f"{self.path} lies within -{bound:g} and {bound:g}")
        return number

    def flag(self) -> bool:
        """Raises InvalidRecipe for what is neither true nor false."""
        if not self.is_flag:
            self.fail(f"{self.path} is true or false")
        return self.text().lower() in _TRUE


def load(text: str) -> Node:
    """The one document in `text`. Raises InvalidRecipe, with line and column, for what is no such YAML."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise InvalidRecipe(f"a document has at most {MAX_BYTES:,} bytes; this one has more")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        _fail("a character that YAML does not allow", before.count("\n") + 1, len(before) - before.rfind("\n"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _fail(f"not YAML: {error.problem or error.context}", mark.line + 1, mark.column + 1)
    if root is None:
        raise InvalidRecipe("the document is empty")
    return _node(root, "")


def _fail(reason: str, line: int, column: int, param: str | None = None) -> NoReturn:
    raise InvalidRecipe(f"line {line}, column {column}: {reason}", param=param)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses aliases, before they can grow, depth, before it can exhaust the stack, and more than a recipe holds."""

    depth = count = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            _fail("aliases are not read; write the value out", mark.line + 1, mark.column + 1)
        if self.depth > MAX_DEPTH:
            _fail(f"nested more than {MAX_DEPTH} deep", mark.line + 1, mark.column + 1)
        if self.count == MAX_NODES:
            _fail(f"a document has at most {MAX_NODES:,} keys and values", mark.line + 1, mark.column + 1)
        self.depth, self.count = self.depth + 1, self.count + 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _node(node: yaml.Node, path: str) -> Node:
    line, column = node.start_mark.line + 1, node.start_mark.column + 1
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return Node(_mapping(node, path), path, line, column)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return Node([_node(item, _inside(path, str(n))) for n, item in enumerate(node.value)], path, line, column)
    if isinstance(node, yaml.ScalarNode) and _is_plain(node):
        is_null = node.tag == _TAG + "null"
        return Node(None if is_null else str(node.value), path, line, column, is_quoted=node.style is not None)
    _fail("tags are not read; write the value without '!'", line, column, path or None)


def _is_plain(node: yaml.ScalarNode) -> bool:
    """Whether its tag is the one that its text has anyway."""
    implicit = (node.style is None, node.style is not None)
    return bool(node.tag == _RESOLVER.resolve(yaml.ScalarNode, node.value, implicit))


def _mapping(node: yaml.MappingNode, path: str) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for key, value in node.value:
        line, column = key.start_mark.line + 1, key.start_mark.column + 1
        if key.tag != _TAG + "str" or not _KEY.fullmatch(key.value):
            _fail("a key is one word of letters, digits and _", line, column, path or None)
        inside = _inside(path, key.value)
        if key.value in found:
            _fail(f"{key.value!r} is given twice; keep one", line, column, inside)
        found[key.value] = _node(value, inside)
    return found


def _inside(path: str, part: str) -> str:
    return f"{path}.{part}" if path else part
