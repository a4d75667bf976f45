"""Which fields of a message a chat template reads: what it names of a turn, by the template's own syntax tree.

Role, content and calls are everybody's; DeepSeek's reads ``prefix``, GLM's ``metadata``, and somebody's own template
whatever its rows have. A field that no template reads is a note of whoever made the set, and no part of what is said.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import nodes

MESSAGES, LOOP, NEIGHBOURS = "messages", "loop", ("previtem", "nextitem")


def message_fields(tree: "nodes.Template") -> frozenset[str]:
    """Return the names that a template asks of a turn: ``m.name``, ``m['name']``, ``m.get('name')``, ``'name' in m``; for
    ``m[key]`` any text that stands in the template."""
    return frozenset(_Reading(tree).fields())


class _Reading:
    """Variables of a template that hold conversations or turns, found by how they are bound."""

    def __init__(self, tree: "nodes.Template") -> None:
        from jinja2 import nodes

        self.nodes, self.tree = nodes, tree
        self.lists, self.turns = {MESSAGES}, set[str]()
        known = -1
        while known != (
            known := len(self.lists) + len(self.turns)
        ):  # what is bound by what is bound further on
            self._bind()

    def _bind(self) -> None:
        nodes = self.nodes
        macros = {macro.name: macro for macro in self.tree.find_all(nodes.Macro)}
        bound: list[tuple[Any, Any, bool]] = [
            *((loop.target, loop.iter, True) for loop in self.tree.find_all(nodes.For)),
            *((assign.target, assign.node, False) for assign in self.tree.find_all(nodes.Assign)),
        ]
        for call in self.tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name in macros:
                bound += [
                    (*both, False) for both in zip(macros[call.node.name].args, call.args, strict=False)
                ]
        for target, value, is_loop in bound:
            if not isinstance(target, nodes.Name):
                continue
            if self._is_list(value):
                (self.turns if is_loop else self.lists).add(target.name)
            elif self._is_turn(value) and not is_loop:
                self.turns.add(target.name)

    def _is_list(self, node: "nodes.Node | None") -> bool:
        nodes = self.nodes
        if isinstance(node, nodes.Name):
            return node.name in self.lists
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Slice) and self._is_list(node.node)
        if isinstance(node, nodes.Filter):
            return node.name not in ("first", "last", "length", "tojson") and self._is_list(node.node)
        if isinstance(node, nodes.Add):
            return self._is_list(node.left) or self._is_list(node.right)
        return isinstance(node, nodes.CondExpr) and (self._is_list(node.expr1) or self._is_list(node.expr2))

    def _is_turn(self, node: "nodes.Node | None") -> bool:
        nodes = self.nodes
        if isinstance(node, nodes.Name):
            return node.name in self.turns
        if isinstance(node, nodes.Getitem):
            return not isinstance(node.arg, nodes.Slice) and self._is_list(node.node)
        if isinstance(node, nodes.Filter):
            return node.name in ("first", "last") and self._is_list(node.node)
        if isinstance(node, nodes.Getattr):
            return isinstance(node.node, nodes.Name) and node.node.name == LOOP and node.attr in NEIGHBOURS
        return isinstance(node, nodes.CondExpr) and (self._is_turn(node.expr1) or self._is_turn(node.expr2))

    def fields(self) -> Iterator[str]:
        """Names that are asked of a turn."""
        nodes = self.nodes
        for node in self.tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Compare, nodes.Call)):
            if isinstance(node, nodes.Getattr) and self._is_turn(node.node):
                yield from {node.attr} - set(dir(dict))
            elif isinstance(node, nodes.Getitem) and self._is_turn(node.node):
                yield from self._text(node.arg)
            elif isinstance(node, nodes.Compare) and any(
                operand.op in ("in", "notin") and self._is_turn(operand.expr) for operand in node.ops
            ):
                yield from self._text(node.expr)
            elif isinstance(node, nodes.Call) and self._gets(node.node):
                yield from self._text(node.args[0])

    def _gets(self, called: "nodes.Node") -> bool:
        return isinstance(called, self.nodes.Getattr) and called.attr == "get" and self._is_turn(called.node)

    def _text(self, node: "nodes.Node") -> Iterator[str]:
        texts = [node] if isinstance(node, self.nodes.Const) else []
        if isinstance(node, self.nodes.Name):
            texts = list(self.tree.find_all(self.nodes.Const))
        yield from (text.value for text in texts if isinstance(text.value, str))
