"""What a reader wrote on a page: names of nodes, groups, notes. A small JSON beside the circuit."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError

from circuit.graph.record import Circuit
from circuit.inspect.running import nodes_of
from sparse_model import storage
from sparse_model.errors import InputError
from sparse_model.model.config import Config

LONGEST_NAME, LONGEST_NOTE = 60, 4000


class Notes(Config):
    """Notes on one circuit, as a page saves them."""

    format: Literal["circuit-sweeps/notes"] = Field(description="what the JSON holds")
    version: Literal[1] = Field(description="of this object's JSON")
    task: str = Field(max_length=400, description="task of the circuit")
    model: str = Field(max_length=64, description="fingerprint of its model")
    names: dict[str, str] = Field(default_factory=dict, description="names given to nodes")
    groups: dict[str, str] = Field(default_factory=dict, description="group of a node")
    notes: dict[str, str] = Field(
        default_factory=dict, description="note on a node; under the empty name, on the whole"
    )

    @classmethod
    def none_on(cls, circuit: Circuit) -> Notes:
        """A page's notes before anyone has written one."""
        return cls(format="circuit-sweeps/notes", version=1, task=circuit.task, model=circuit.model)

    @classmethod
    def load(cls, uri: storage.PathOrURI) -> Notes:
        """Read what a page saved; InputError where it is something else."""
        try:
            return cls.model_validate_json(storage.read_bytes(storage.as_uri(uri)))
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(
                f"{uri}: not the notes of a page ({'.'.join(map(str, first['loc']))}: {first['msg']})"
            ) from None

    def require(self, circuit: Circuit) -> None:
        """InputError where the notes are on another circuit, speak of nodes it has not, or are too long."""
        if (self.task, self.model) != (circuit.task, circuit.model):
            raise InputError(
                f"notes on {self.task} of model {self.model}; the circuit is of {circuit.task}, model {circuit.model}"
            )
        known = {node.name for node in nodes_of(circuit)}
        longest = {"names": LONGEST_NAME, "groups": LONGEST_NAME, "notes": LONGEST_NOTE}
        for field, most in longest.items():
            for node, text in getattr(self, field).items():
                if node not in known and not (node == "" and field == "notes"):
                    raise InputError(f"notes: {field}: {node!r} is no node of the circuit of {circuit.task}")
                if len(text) > most:
                    raise InputError(
                        f"notes: {field} of {node or 'the circuit'}: {len(text)} characters; allowed: {most}"
                    )
