"""Which fields of a message a chat template reads: what it names of a turn, by the template's own syntax tree.

Role, content and calls are everybody's; DeepSeek's reads ``prefix``, GLM's ``metadata``, and somebody's own template
whatever its rows have. A field that no template reads is a note of whoever made the set, and no part of what is said. A
turn that goes where it is not followed, or is written as a whole, may have every field of it read: ``EVERY``.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dpo_core.data.messages import EVERY
from dpo_core.data.template_turns import ADDS, HeldTurns

if TYPE_CHECKING:
    from jinja2 import nodes

COUNTS = frozenset({"length", "count"})
NAME_FIRST = frozenset({"selectattr", "rejectattr", "attr"})  # filters whose first argument is a field's name
BY_FIELD = frozenset(
    {"map", "join", "sum"}
)  # filters that read the field ``attribute`` alone, where there is one
OF_DICT = frozenset(dir(dict))


def message_fields(tree: "nodes.Template") -> frozenset[str]:
    """Return the names that a template asks of a turn: ``m.name``, ``m['name']``, ``m.get('name')``, ``'name' in m``; for
    ``m[key]`` any text that stands in the template. ``EVERY`` is among them where it may ask for any: ``m | tojson``."""
    return frozenset(_Reading(tree).fields())


class _Reading:
    """What becomes of the turns that a template has."""

    def __init__(self, tree: "nodes.Template") -> None:
        from jinja2 import nodes

        self.nodes, self.tree, self.turns = nodes, tree, HeldTurns(tree)

    def fields(self) -> Iterator[str]:
        """Names that are asked of a turn."""
        nodes = self.nodes
        for node, parent, grandparent in self.turns.places:
            if isinstance(node, nodes.Compare) and any(map(self._looks_into_turn, node.ops)):
                yield from self._text(node.expr)
            is_value = isinstance(node, nodes.Expr) and getattr(node, "ctx", "load") == "load"
            if is_value and (depths := self.turns.depths_of(node)):
                yield from self._read(node, depths, parent, grandparent)

    def _looks_into_turn(self, compared: Any) -> bool:
        return compared.op in ("in", "notin") and 0 in self.turns.depths_of(compared.expr)

    def _read(self, node: Any, depths: set[int], parent: Any, grandparent: Any) -> Iterator[str]:
        """What is read of turns by the node that has them."""
        nodes = self.nodes
        if isinstance(parent, nodes.Getattr):
            if 0 in depths:
                yield from self._attribute(parent, grandparent)
        elif isinstance(parent, nodes.Getitem) and parent.node is node:
            if 0 in depths:
                yield from self._text(parent.arg)
        elif isinstance(parent, nodes.Filter) and parent.node is node:
            yield from self._filtered(parent, depths)
        elif isinstance(parent, nodes.For):
            yield from {EVERY} if 0 in depths and parent.iter is node else ()  # its names, one by one
        elif not (self._only_asks(node, parent) or self._is_followed(node, parent, grandparent)):
            yield EVERY

    def _only_asks(self, node: Any, parent: Any) -> bool:
        """Whether there is a turn, or which of several it is, is all that is asked."""
        nodes = self.nodes
        asks = nodes.Test, nodes.Compare, nodes.Operand, nodes.If, nodes.Not, nodes.ExprStmt
        if isinstance(parent, nodes.Call) and getattr(parent.node, "name", None) == "raise_exception":
            return True
        is_condition = isinstance(parent, nodes.CondExpr) and parent.test is node
        return (
            is_condition
            or isinstance(parent, asks)
            or (isinstance(parent, nodes.And) and parent.left is node)
        )

    def _is_followed(self, node: Any, parent: Any, grandparent: Any) -> bool:
        nodes = self.nodes
        if isinstance(parent, nodes.Assign | nodes.With | nodes.Macro | nodes.CallBlock):
            return True
        if isinstance(parent, nodes.Keyword):
            is_namespace = getattr(getattr(grandparent, "node", None), "name", None) == "namespace"
            if isinstance(grandparent, nodes.Call):
                return is_namespace or any(value is node for _, value in self.turns.given_by(grandparent))
            return bool(self.turns.depths_of(grandparent))  # a filter's default
        if isinstance(parent, nodes.Call) and any(value is node for _, value in self.turns.given_by(parent)):
            return True
        if (
            isinstance(parent, nodes.Call)
            and isinstance(parent.node, nodes.Getattr)
            and parent.node.attr in ADDS
        ):
            return self.turns.key_of(parent.node.node) is not None
        flows = (
            nodes.List,
            nodes.Tuple,
            nodes.Add,
            nodes.CondExpr,
            nodes.And,
            nodes.Or,
            nodes.Filter,
            nodes.Call,
        )
        return isinstance(parent, flows) and bool(self.turns.depths_of(parent))

    def _attribute(self, asked: Any, grandparent: Any) -> Iterator[str]:
        if asked.attr not in OF_DICT:
            yield asked.attr
        elif asked.attr in ("get", "pop", "setdefault") and getattr(grandparent, "args", None):
            yield from self._text(grandparent.args[0])
        elif asked.attr != "copy":
            yield EVERY

    def _filtered(self, node: Any, depths: set[int]) -> Iterator[str]:
        """What a filter reads of the turns that it is given."""
        by_name = {one.key: one.value for one in node.kwargs}
        if node.name in NAME_FIRST and node.args:
            yield from self._text(node.args[0])
        elif "attribute" in by_name:
            yield from self._text(by_name["attribute"])
        followed = self.turns.left_by_filter(node) if 0 not in depths or node.name in ("default", "d") else ()
        by_field = node.name == "attr" or (node.name in BY_FIELD and "attribute" in by_name)
        if not (followed or by_field or node.name in COUNTS):
            yield EVERY

    def _text(self, node: Any) -> Iterator[str]:
        """The names that a key may be."""
        nodes = self.nodes
        if isinstance(node, nodes.Const):
            yield from [node.value.partition(".")[0]] if isinstance(node.value, str) else ()
        elif isinstance(node, nodes.CondExpr):
            yield from self._text(node.expr1)
            yield from self._text(node.expr2 or nodes.Const(None))
        elif isinstance(node, nodes.Name):
            values = self.turns.bound_to.get(self.turns.key_of(node) or "", [])
            if not values or not all(map(self._is_constant, values)):
                yield EVERY
            yield from (one.value for one in self.tree.find_all(nodes.Const) if isinstance(one.value, str))
        else:
            yield EVERY

    def _is_constant(self, value: Any) -> bool:
        nodes = self.nodes
        kinds = nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair
        return all(isinstance(one, kinds) for one in (value, *value.find_all(nodes.Node)))
