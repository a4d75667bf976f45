"""Where a chat template has turns of the conversation: the variables that hold them, by its syntax tree.

Turns are followed through variables, namespaces, loops, filters and macros.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import nodes

MESSAGES, LOOP, NEIGHBOURS = "messages", "loop", ("previtem", "nextitem")
DEEPEST = 3  # lists in lists of turns that are told apart
ONE_OF = frozenset({"first", "last", "random", "min", "max"})  # filters: of a list an item
SOME_OF = frozenset(
    {"list", "reverse", "sort", "select", "reject", "selectattr", "rejectattr", "unique", "default", "d"}
)
PARTS_OF = frozenset({"batch", "slice"})
ADDS = {
    "append": 1,
    "insert": 1,
    "extend": 0,
}  # methods of lists: how much deeper an argument lies in them then


class HeldTurns:
    """Variables of a template that hold turns, found by how they are bound.

    ``held``: by variable (``name``, ``namespace.name``), in how many lists the turns lie that it may hold; 0: a turn itself.
    """

    def __init__(self, tree: "nodes.Template") -> None:
        from jinja2 import nodes

        self.nodes, self.tree = nodes, tree
        self.held: dict[str, set[int]] = {MESSAGES: {1}}
        self.bound_to: dict[str, list[Any]] = {}  # by variable, what it is bound to
        self.macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
        self.scopes: dict[
            int, dict[str, str]
        ] = {}  # by node, what the names of parameters and loops mean there
        self.places: list[tuple[Any, Any, Any]] = []  # each node with its parent and its grandparent
        self._walk(tree, None, None, {})
        known = -1
        while known != (
            known := sum(map(len, self.held.values()))
        ):  # what is bound by what is bound further on
            for node, *_ in self.places:
                self._bind_at(node)

    # ---------------------------------------------------------------------------------------------- names and scopes

    def _walk(self, node: Any, parent: Any, grandparent: Any, scope: dict[str, str]) -> None:
        nodes = self.nodes
        self.scopes[id(node)] = scope
        self.places.append((node, parent, grandparent))
        own: list[Any] = []
        if isinstance(node, nodes.For):
            own = [node.target]
        elif isinstance(node, nodes.Macro | nodes.CallBlock):
            own = node.args
        elif isinstance(node, nodes.With):
            own = node.targets
        names = {
            name.name for target in own for name in (target, *target.find_all(nodes.Name)) if _named(name)
        }
        inner = {**scope, **{name: f"{name} of {id(node)}" for name in names}} if names else scope
        outside = [getattr(node, "iter", None), *getattr(node, "values", ())] if names else []
        for child in node.iter_child_nodes():
            is_outside = any(child is one for one in outside)
            self._walk(child, node, parent, scope if is_outside else inner)

    def key_of(self, node: Any) -> str | None:
        """Return the variable that a node names: ``x``, ``ns.x``, ``ns['x']``; None for any other node."""
        nodes = self.nodes
        scope = self.scopes[id(node)]
        if isinstance(node, nodes.Name):
            return scope.get(node.name, node.name)
        if isinstance(node, nodes.NSRef):
            return f"{scope.get(node.name, node.name)}.{node.attr}"
        if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
            return f"{self.key_of(node.node)}.{node.attr}"
        is_member = isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Name)
        if is_member and isinstance(node.arg, nodes.Const):
            return f"{self.key_of(node.node)}.{node.arg.value}"
        return None

    # ------------------------------------------------------------------------------------------------- what is bound

    def _bind_at(self, node: Any) -> None:
        nodes = self.nodes
        if isinstance(node, nodes.For):
            self._bind(node.target, _less(self.depths_of(node.iter)), node.iter)
        elif isinstance(node, nodes.Assign):
            self._bind(node.target, self.depths_of(node.node), node.node)
        elif isinstance(node, nodes.With):
            for target, value in zip(node.targets, node.values, strict=False):
                self._bind(target, self.depths_of(value), value)
        elif isinstance(node, nodes.Macro | nodes.CallBlock):
            defaults = node.defaults
            for target, value in zip(node.args[len(node.args) - len(defaults) :], defaults, strict=True):
                self._bind(target, self.depths_of(value), value)
        elif isinstance(node, nodes.Call):
            for target, value in self.given_by(node):
                self._bind(target, self.depths_of(value), value)
            if isinstance(node.node, nodes.Getattr) and node.node.attr in ADDS:
                for value in node.args:
                    self._hold(
                        self.key_of(node.node.node), _more(self.depths_of(value), ADDS[node.node.attr])
                    )

    def given_by(self, call: Any) -> Iterator[tuple[Any, Any]]:
        """Yield parameters of a macro, or of the blocks that macros call, with what is given for them."""
        name = getattr(call.node, "name", None)
        if name in self.macros:
            parameters = self.macros[name].args
            yield from zip(parameters, call.args, strict=False)
            by_name = {parameter.name: parameter for parameter in parameters}
            yield from ((by_name[one.key], one.value) for one in call.kwargs if one.key in by_name)
        elif name == "caller":
            for block in self.tree.find_all(self.nodes.CallBlock):
                yield from zip(block.args, call.args, strict=False)

    def _bind(self, target: Any, depths: set[int], value: Any) -> None:
        nodes = self.nodes
        if isinstance(target, nodes.Tuple):
            values = value.items if isinstance(value, nodes.Tuple) else [None] * len(target.items)
            for one, of_one in zip(target.items, values, strict=False):
                self._bind(one, _less(depths) if of_one is None else self.depths_of(of_one), of_one or value)
            return
        if (key := self.key_of(target)) is None:
            return
        self._hold(key, depths)
        if all(value is not one for one in self.bound_to.setdefault(key, [])):
            self.bound_to[key].append(value)
        if isinstance(value, nodes.Call) and getattr(value.node, "name", None) == "namespace":
            for one in value.kwargs:
                self._hold(f"{key}.{one.key}", self.depths_of(one.value))
        elif isinstance(value, nodes.Name):  # a namespace by another name
            given = f"{self.key_of(value)}."
            for other in [other for other in self.held if other.startswith(given)]:
                self._hold(f"{key}.{other.removeprefix(given)}", self.held[other])

    def _hold(self, key: str | None, depths: set[int]) -> None:
        if key is not None and depths:
            self.held.setdefault(key, set()).update(depths)

    def depths_of(self, node: Any) -> set[int]:
        """Return in how many lists the turns lie that a node's value may hold; none for a value without turns."""
        nodes, depths = self.nodes, self.depths_of
        if node is None or isinstance(node, nodes.And):
            return depths(node.right) if node else set()
        if (key := self.key_of(node)) is not None and key in self.held:
            return self.held[key]
        if isinstance(node, nodes.Getattr):
            of_loop = isinstance(node.node, nodes.Name) and node.node.name == LOOP
            return {0} if of_loop and node.attr in NEIGHBOURS else set()
        if isinstance(node, nodes.Getitem):
            return depths(node.node) - {0} if isinstance(node.arg, nodes.Slice) else _less(depths(node.node))
        if isinstance(node, nodes.Filter):
            return self.left_by_filter(node)
        if isinstance(node, nodes.List | nodes.Tuple):
            return _more({one for item in node.items for one in depths(item)}, 1)
        if isinstance(node, nodes.Add):
            return (depths(node.left) | depths(node.right)) - {0}
        if isinstance(node, nodes.CondExpr):
            return depths(node.expr1) | depths(node.expr2)
        if isinstance(node, nodes.Or):
            return depths(node.left) | depths(node.right)
        if isinstance(node, nodes.Call):
            called = node.node
            if isinstance(called, nodes.Getattr) and called.attr in ("copy", "pop"):
                held = depths(called.node)
                return held if called.attr == "copy" else _less(held)
            if isinstance(called, nodes.Name) and called.name == "dict" and node.args:
                return depths(node.args[0]) & {0}
        return set()

    def left_by_filter(self, node: Any) -> set[int]:
        """Return the same of a filter, whatever it reads."""
        held = self.depths_of(node.node)
        if node.name in ONE_OF:
            return _less(held)
        if node.name in ("default", "d"):
            given = [*node.args, *(one.value for one in node.kwargs)]
            return held.union(*map(self.depths_of, given))
        if node.name in SOME_OF:
            return held - {0}
        return _more(held - {0}, 1) if node.name in PARTS_OF else set()


def _named(node: Any) -> bool:
    return isinstance(getattr(node, "name", None), str)


def _less(depths: set[int]) -> set[int]:
    return {depth - 1 for depth in depths if depth}


def _more(depths: set[int], by: int) -> set[int]:
    return {min(depth + by, DEEPEST) for depth in depths}
