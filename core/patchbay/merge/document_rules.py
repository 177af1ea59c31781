"""What a document gives tensors by name and by depth, as the fields of rules. Knows no method and no parameter."""

from __future__ import annotations

from typing import Any

from patchbay.merge.document import Node
from patchbay.merge.rules import EVERY, MAX_GRADIENT


def read_rules(node: Node, bound: float) -> list[dict[str, Any]]:
    """`.5`, `[0, .5, 1]`, `{filter: mlp, value: .5}`, or a list of such mappings. Numbers lie within `bound`.

    Raises InvalidRecipe, with line and column, for another thing.
    """
    if isinstance(node.content, dict):
        return [_rule(node, bound)]
    if isinstance(node.content, list) and any(isinstance(item.content, dict) for item in node.content):
        return [_rule(item, bound) for item in node.content]
    return [{"value": _value(node, bound)}]


def _rule(node: Node, bound: float) -> dict[str, Any]:
    fields = node.mapping(("filter", "value"))
    if "value" not in fields:
        node.fail("a filter has a value")
    rule = {"value": _value(fields["value"], bound)}
    return rule | {"filter": fields["filter"].text()} if "filter" in fields else rule


def _value(node: Node, bound: float) -> float | list[float]:
    if not isinstance(node.content, list):
        return node.number(bound)
    if not 1 <= len(node.content) <= MAX_GRADIENT:
        node.fail(f"a gradient has 1 to {MAX_GRADIENT} numbers")
    return [item.number(bound) for item in node.content]


def reached(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what stands behind a rule for all tensors."""
    last = next((n for n, rule in enumerate(rules) if rule.get("filter", EVERY) == EVERY), len(rules))
    return rules[: last + 1]
