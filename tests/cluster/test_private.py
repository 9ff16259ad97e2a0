"""What of Ray is used that Ray does not promise: tests that say what breaks where a new Ray has it otherwise."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import ray

REMEDY = "in sweeps/{where}: read there what it is for before the lock moves to Ray {version}"


def remedy(where: str) -> str:
    return REMEDY.format(where=where, version=ray.__version__)


def test_placement_groups_tell_their_creator() -> None:
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    where = remedy("engine/orphans.py")
    fields = {field.name for field in PlacementGroupTableData.DESCRIPTOR.fields}
    wanted = {"placement_group_id", "creator_job_id", "creator_actor_id", "is_detached", "state"}
    assert wanted <= fields, where
    assert "REMOVED" in set(PlacementGroupTableData.PlacementGroupState.keys()), where
    assert callable(state._connect_and_get_accessor), where
    assert callable(state.actor_table), where
    assert callable(state.job_table), where


def test_a_process_group_is_joined_by_rays_own_functions() -> None:
    from ray.train._internal.utils import get_address_and_port
    from ray.train.backend import Backend, BackendConfig
    from ray.train.torch import config
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    where = remedy("engine/train.py")
    assert callable(get_address_and_port), where
    joined = list(inspect.signature(config._setup_torch_process_group).parameters)
    assert joined[:4] == ["backend", "world_rank", "world_size", "init_method"], where
    assert "destroy_process_group" in inspect.signature(config._shutdown_torch).parameters, where
    assert not inspect.signature(config._set_torch_distributed_env_vars).parameters, where
    assert "backend_config" in inspect.signature(DataParallelTrainer.__init__).parameters, where
    assert {"on_start", "on_shutdown", "share_cuda_visible_devices"} <= set(dir(Backend)), where
    assert {"backend_cls", "train_func_context"} <= set(dir(BackendConfig)), where
    # What it stands for does no more on a CPU or a GPU: another step there would be missing here.
    source = inspect.getsource(config._TorchBackend.on_start)
    for step in ("get_address_and_port", "_set_torch_distributed_env_vars", "_setup_torch_process_group"):
        assert step in source, where


def test_what_is_uploaded_is_told_by_rays_own_rules() -> None:
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    where = remedy("engine/upload.py")
    assert list(inspect.signature(_get_excludes).parameters) == ["path", "excludes"], where
    wanted = ["path", "excludes", "handler", "include_gitignore"]
    assert list(inspect.signature(_dir_travel).parameters)[:4] == wanted, where


def test_cores_are_counted_by_ray() -> None:
    from ray._private.utils import get_num_cpus

    assert get_num_cpus() >= 1, remedy("engine/session.py")


@pytest.mark.parametrize("name", ["last_result", "metric_analysis", "metric_n_steps"])
def test_what_tune_holds_of_a_trial_can_be_dropped(name: str) -> None:
    from ray.tune.experiment.trial import _TrainingRunMetadata

    made: Any = _TrainingRunMetadata()
    assert hasattr(made, name), remedy("engine/runner.py (forget)")


def test_a_client_of_jobs_passes_on_how_long_it_waits() -> None:
    from ray.job_submission import JobSubmissionClient

    options = inspect.signature(JobSubmissionClient._do_request).parameters
    assert any(one.kind is inspect.Parameter.VAR_KEYWORD for one in options.values()), remedy("engine/submission.py")
    assert inspect.isasyncgenfunction(JobSubmissionClient.tail_job_logs), remedy("engine/submission.py")
