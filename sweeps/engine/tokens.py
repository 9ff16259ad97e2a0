"""Tokenising with Ray Data: the parts of a corpus as rows, each worked on by one CPU core wherever there is one."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from sparse_model.data.corpora import Part
from sparse_model.data.parts import PartRecord
from sparse_model.data.processes import Execute, Work
from sparse_model.errors import InputError
from sweeps.engine.session import ray_session
from sweeps.study.study import ResourceConfig


def on_ray(resources: ResourceConfig, address: str | None) -> Execute:
    """Parts on the Ray at `address`, or on one of this machine that lives only as long as the work.

    Every machine must reach the sources and the storage by the URIs they are given by; a Python file that is not the
    same everywhere is refused. Parts on a machine that is lost are worked on again.
    """

    def execute(work: Work, parts: Sequence[Part]) -> Iterator[PartRecord]:
        if parts:
            with ray_session(resources, address):
                yield from ray_data(work, parts)

    return execute


def ray_data(work: Work, parts: Sequence[Part]) -> Iterator[PartRecord]:
    """The records as they come, from a Ray that is up already."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([{"part": pickle.dumps(part)} for part in parts], override_num_blocks=len(parts))
    shared = ray.put(work)
    for row in rows.map(_tokenise, fn_args=(shared,), num_cpus=1).iter_rows():
        if row["refused"]:
            raise pickle.loads(row["refused"])
        yield PartRecord.model_validate_json(row["record"])


def _tokenise(row: dict[str, Any], shared: Any) -> dict[str, Any]:
    import ray

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # other parts are on the other cores
    work: Work = ray.get(shared)
    try:
        return {"record": work(pickle.loads(row["part"])).model_dump_json(), "refused": b""}
    except InputError as error:  # a row, not an exception, which would be tried again and wrapped up
        return {"record": "", "refused": pickle.dumps(type(error)(str(error)))}
