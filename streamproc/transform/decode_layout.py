"""Where the contract's fields stand in a record: the tree of keys, and what each parser is told about it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import polars as pl

from streamproc.topology import Contract, Field, FieldType

#: What msgspec must find at a leaf so that polars' value for it is the true one. An integer has to fit Int64.
_STRICT_TYPES: Mapping[FieldType, Any] = {
    FieldType.STRING: str | None,
    FieldType.INTEGER: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None,
    FieldType.NUMBER: float | None,
    FieldType.BOOLEAN: bool | None,
    FieldType.JSON: msgspec.Raw,
}


@dataclass(slots=True)
class Node:
    """A key the contract names: a leaf with the fields read from it, a parent of deeper ones, or both.

    Both only when the field keeps the object as JSON text while other fields read inside it.
    """

    path: tuple[str, ...]
    fields: list[Field] = field(default_factory=list)
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def typed(self) -> list[Field]:
        """The fields that read a scalar here."""
        return [f for f in self.fields if f.type is not FieldType.JSON]

    @property
    def json(self) -> list[Field]:
        """The fields that keep what is here as JSON text."""
        return [f for f in self.fields if f.type is FieldType.JSON]

    @property
    def label(self) -> str:
        """The path as msgspec writes it in its messages."""
        return ".".join(("$", *self.path))

    @property
    def value(self) -> pl.Expr:
        """The node's value in the frame that polars made of the records."""
        first, *rest = self.path
        expression = pl.col(first)
        for key in rest:
            expression = expression.struct.field(key)
        return expression

    def walk(self) -> Iterator[Node]:
        """Every node below this one, parents first."""
        for child in self.children.values():
            yield child
            yield from child.walk()

    def polars_schema(self) -> dict[str, pl.DataType]:
        """Schema of this object for ``read_ndjson``; JSON-text leaves are not in it."""
        schema: dict[str, pl.DataType] = {}
        for key, child in self.children.items():
            if inner := child.polars_schema():
                schema[key] = pl.Struct(inner)
            elif child.typed:
                schema[key] = child.typed[0].type.polars
        return schema

    def strict_struct(self) -> type[msgspec.Struct]:
        """The same object as a msgspec type that refuses what ``read_ndjson`` would coerce."""
        members: list[tuple[str, Any, Any]] = []
        names: dict[str, str] = {}
        for number, (key, child) in enumerate(self.children.items()):
            names[f"f{number}"] = key  # keys need not be Python names
            if child.children:
                members.append((f"f{number}", child.strict_struct() | None, None))
            else:
                leaf = (child.typed or child.fields)[0].type
                absent = msgspec.Raw(b"") if leaf is FieldType.JSON else None
                members.append((f"f{number}", _STRICT_TYPES[leaf], absent))
        return msgspec.defstruct("Record", members, rename=names, gc=False)

    def plain_struct(self) -> type[msgspec.Struct]:
        """The same object as a msgspec type that takes nothing but the contract's texts, integers and flags."""
        members: list[tuple[str, Any, Any]] = []
        names: dict[str, str] = {}
        for number, (key, child) in enumerate(self.children.items()):
            names[f"f{number}"] = key
            if child.children:
                members.append((f"f{number}", child.plain_struct() | None, None))
            elif child.typed and child.typed[0].type is not FieldType.NUMBER:
                members.append((f"f{number}", _STRICT_TYPES[child.typed[0].type], None))
        names = {name: names[name] for name, *_ in members}
        return msgspec.defstruct("Plain", members, rename=names, gc=False, forbid_unknown_fields=True)


def source_text_struct(path: tuple[str, ...]) -> type[msgspec.Struct]:
    """A msgspec type that reads only the source text at ``path``: attribute ``f0`` of ``f0`` of …"""
    key, *rest = path
    if rest:
        member: tuple[str, Any, Any] = ("f0", source_text_struct(tuple(rest)) | None, None)
    else:
        member = ("f0", msgspec.Raw, msgspec.Raw(b""))
    return msgspec.defstruct("SourceText", [member], rename={"f0": key}, gc=False)


@dataclass(frozen=True, slots=True)
class Layout:
    """A contract's fields as a tree. ``nodes``: all of them, parents first."""

    contract: Contract
    root: Node
    nodes: tuple[Node, ...]


@functools.lru_cache(maxsize=64)
def layout_of(contract: Contract) -> Layout:
    """The tree of a contract's keys. Raises ValueError when two fields need different types of one key."""
    root = Node(())
    for contract_field in contract.fields:
        node = root
        for depth, key in enumerate(contract_field.path, start=1):
            node = node.children.setdefault(key, Node(contract_field.path[:depth]))
        node.fields.append(contract_field)
    nodes = tuple(root.walk())
    for node in nodes:
        kinds = {f.type for f in node.typed}
        if len(kinds) > 1 or (kinds and (node.children or node.json)):
            names = ", ".join(f.name for f in node.fields)
            raise ValueError(f"fields {names} read different types from {node.label}")
    return Layout(contract, root, nodes)
