"""YAML within limits: a recipe may be anybody's, and few lines of YAML can stand for more than a machine holds.

a: &a [x, x, x, x, x, x, x, x, x, x]
b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]     and so on: ten times as much a line, once it is checked or shown
"""

from typing import Any, cast

import yaml

MAX_CHARACTERS = 256 << 10  # 50 times the largest recipe; PyYAML reads as much in seconds
MAX_VALUES = 20_000  # each reference to an anchor counts as what it stands for
MAX_DEPTH = 32


class _BoundedLoader(yaml.SafeLoader):
    """Counts what is composed before values are made of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.num_values = self.depth = self.deepest = 0
        self.known: dict[int, tuple[int, int]] = {}  # id of a node -> its values, levels below it

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        mark = cast(yaml.Mark, event.start_mark)  # not libyaml's: this loader is Python's
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self.known:
                raise _refusal(f"*{event.anchor} refers to what it is part of", mark)
            self._count(*self.known[id(node)], mark)
            return node
        before, around = self.num_values, self.deepest
        self.deepest = 0
        self._count(1, 0, mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        self.known[id(node)] = self.num_values - before, self.deepest - self.depth
        self.deepest = max(around, self.deepest)
        return node

    def _count(self, values: int, levels: int, mark: yaml.Mark) -> None:
        self.num_values += values
        self.deepest = max(self.deepest, self.depth + levels)
        if self.num_values > MAX_VALUES:
            raise _refusal(
                f"more than {MAX_VALUES:,} values, counting each *reference as what it stands for", mark
            )
        if self.deepest >= MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} levels deep", mark)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Names may stand once: of two values PyYAML takes the last, and nobody hears of the first."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (name := (key.tag, key.value)) in seen:
                raise _refusal(
                    f"`{key.value}` stands here a second time; remove one of the two", key.start_mark
                )
            seen.add(name)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ) as error:  # 2026-13-41, !!bool maybe, 5000 digits
            raise _refusal(f"{type(error).__name__}: {error}", node.start_mark) from error


def _refusal(problem: str, mark: yaml.Mark | None = None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def load_within_limits(text: str) -> Any:
    """Return the value of a YAML text. Raises ``yaml.YAMLError`` for what is none, or goes over the limits."""
    if len(text) > MAX_CHARACTERS:
        raise _refusal(f"longer than {MAX_CHARACTERS:,} characters")
    loader = _BoundedLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
