"""A circuit as a directed graph of networkx."""

from __future__ import annotations

from typing import Any

import networkx as nx

from circuit.graph.record import Circuit, Node


def to_networkx(circuit: Circuit) -> nx.DiGraph[Node]:
    """Directed graph of `Node`s (attributes site, channel) and edges (matrix, layer, weight).

    Residual stream and attention pattern are not edges: a path goes on where the next sublayer reads the same channel.
    """
    graph: nx.DiGraph[Node] = nx.DiGraph(task=circuit.task, model=circuit.model)
    for site, channels in circuit.nodes.items():
        for channel in channels:
            graph.add_node(Node(site, channel), site=site, channel=channel)
    for edge in circuit.edges:
        attributes: dict[str, Any] = {"matrix": edge.matrix, "layer": edge.layer, "weight": edge.weight}
        graph.add_edge(edge.source, edge.target, **attributes)
    return graph
