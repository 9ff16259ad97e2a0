"""cluster.yaml is what Ray's cluster launcher accepts, and agrees with the code about names."""

from __future__ import annotations

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from sweeps.cluster import HOLDER, capacity
from sweeps.study import ResourceConfig

CONFIG = Path(__file__).parents[2] / "cluster.yaml"


def test_ray_accepts_it() -> None:
    validate_config(prepare_config(yaml.safe_load(CONFIG.read_text())))


def test_trials_are_held_on_the_head_and_work_elsewhere() -> None:
    types = yaml.safe_load(CONFIG.read_text())["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert HOLDER not in types["worker"]["resources"]
    offered = types["head"]["resources"]
    assert capacity(ResourceConfig.model_validate({}), offered, can_grow=True).holder == {HOLDER: 1.0}


def test_every_node_installs_the_lock() -> None:
    assert any("requirements.lock" in command for command in yaml.safe_load(CONFIG.read_text())["setup_commands"])
