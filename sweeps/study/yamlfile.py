"""YAML read safely and strictly: no key twice, and 1e-3 is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml

from sparse_model.errors import InputError

MOST_VALUES = 100_000
"""In a document, each alias counted as what it stands for: nested ones would otherwise be billions."""


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values in a node, written out."""
    if id(node) in counted:
        if not (found := counted[id(node)]):
            raise yaml.MarkedYAMLError(problem="an alias within what it stands for", problem_mark=node.start_mark)
        return found
    counted[id(node)] = 0
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = [part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,))]
    counted[id(node)] = 1 + sum(_count(part, counted) for part in parts)
    return counted[id(node)]


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` without its traps."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _count(node, {}) > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES:,} values, aliases written out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is not a word", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is there twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot and a signed exponent, and would make a text of 1e-3.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """The mapping in a YAML document; anything else raises InputError with `name` and the line."""
    try:
        content = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{name}:{line} {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not YAML ({' '.join(str(error).split())})") from None
    except (ValueError, KeyError, RecursionError) as error:  # !!bool abc, 2020-99-99, brackets without end
        raise InputError(f"{name}: a value that cannot be read ({type(error).__name__}: {error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{name}: a mapping is expected, not {type(content).__name__}")
    return content
