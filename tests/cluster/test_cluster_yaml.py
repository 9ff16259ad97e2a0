"""The cluster files are what Ray and KubeRay accept, hold no secrets, and agree with the code about names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray import __version__ as ray_version
from ray.autoscaler._private.util import prepare_config, validate_config

from sweeps.engine.session import HOLDER, capacity
from sweeps.study.study import ResourceConfig

ROOT = Path(__file__).parents[2]
LAUNCHER = ("cluster.yaml", "deploy/gcp.yaml")
ALL = (*LAUNCHER, "deploy/kuberay-rayjob.yaml")
PRUNER = "pruner"
HELD = 80
"""Trials of which the head holds the processes."""
OF_A_TRIAL, OF_THE_REST = 0.27, 6.0
"""GB on the head: the two processes of a trial, as measured (docs/scale.md); Ray's own, the driver, the system."""
MEMORY = {"m6i.2xlarge": 32, "n2-standard-8": 32}
"""GB of the heads' machines."""


def content(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_accepts_it_and_no_word_of_ours(name: str) -> None:
    validate_config(prepare_config(content(name)))
    with pytest.raises(ValidationError):
        validate_config(prepare_config(content(name) | {"a_word_of_ours": 1}))


@pytest.mark.parametrize("name", LAUNCHER)
def test_who_works_where(name: str) -> None:
    types = content(name)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, HOLDER: HELD}
    machine = types["head"]["node_config"].get("InstanceType") or types["head"]["node_config"]["machineType"]
    assert MEMORY[machine] > HELD * OF_A_TRIAL + OF_THE_REST
    assert capacity(ResourceConfig.model_validate({}), types["head"]["resources"], can_grow=True).holder == {
        HOLDER: 1.0
    }
    assert types["trainer"]["resources"]["GPU"] >= 1
    assert PRUNER not in types["trainer"]["resources"], "pruning would hold GPUs"
    assert types["pruner"]["resources"][PRUNER] == types["pruner"]["resources"]["CPU"]
    assert all(kind["min_workers"] == 0 for kind in types.values())
    spot = json.dumps([types[kind]["node_config"] for kind in ("trainer", "pruner")]).lower()
    assert spot.count('"spot"') == 2
    assert "spot" not in json.dumps(types["head"]).lower()


@pytest.mark.parametrize("name", LAUNCHER)
def test_every_node_has_the_same_pinned_versions(name: str) -> None:
    config = content(name)
    assert any("requirements.lock" in command for command in config["setup_commands"])
    images = re.findall(r"rayproject/ray:(\S+?)[}\s]", (ROOT / name).read_text())
    assert images
    assert all(re.fullmatch(rf"{re.escape(ray_version)}-py311-(cpu|gpu)", image) for image in images)
    assert f"ray=={ray_version}" in (ROOT / "requirements.lock").read_text().splitlines()
    assert "latest" not in (ROOT / name).read_text()


@pytest.mark.parametrize("name", LAUNCHER)
def test_tokens_are_asked_for_and_the_dashboard_stays_on_loopback(name: str) -> None:
    config = content(name)
    starts = [command for key in ("head", "worker") for command in config[f"{key}_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in shlex.split(command) for command in starts)
    assert "--dashboard-host=127.0.0.1" in shlex.split(starts[0])
    assert "RAY_enable_autoscaler_v2=1" in shlex.split(starts[0])
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_images_of_machines_are_pinned() -> None:
    for kind in content("cluster.yaml")["available_node_types"].values():
        assert re.fullmatch(r"ami-[0-9a-f]{17}", kind["node_config"]["ImageId"])
    for kind in content("deploy/gcp.yaml")["available_node_types"].values():
        image = kind["node_config"]["disks"][0]["initializeParams"]["sourceImage"]
        assert re.search(r"/images/[\w-]+-v\d{8}$", image), "an image, not a family"


@pytest.mark.parametrize("name", ALL)
def test_no_secrets(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"AKIA|ASIA|BEGIN .*PRIVATE KEY|secret_?(access)?_?key\s*[:=]", text, re.IGNORECASE)
    assert not re.search(r"RAY_AUTH_TOKEN\s*[:=]|0\.0\.0\.0", text)


# Fields of the custom resources (KubeRay 1.5, reference/api), as far as one could use them here.
FIELDS = {
    "job": "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector "
    "submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources "
    "entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished shutdownAfterJobFinishes suspend",
    "cluster": "authOptions upgradeStrategy suspend managedBy autoscalerOptions headServiceAnnotations "
    "enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec rayVersion workerGroupSpecs",
    "autoscaler": "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env "
    "envFrom volumeMounts",
    "head": "template headService enableIngress resources labels rayStartParams serviceType",
    "worker": "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds resources labels rayStartParams "
    "template scaleStrategy numOfHosts",
}


def test_kuberay_job() -> None:
    job = content("deploy/kuberay-rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for part, kind in (
        (spec, "job"),
        (cluster, "cluster"),
        (cluster["autoscalerOptions"], "autoscaler"),
        (head, "head"),
        *((worker, "worker") for worker in workers),
    ):
        assert part.keys() <= set(FIELDS[kind].split()), kind
    assert cluster["rayVersion"] == ray_version
    assert (cluster["authOptions"], cluster["autoscalerOptions"]["version"]) == ({"mode": "token"}, "v2")
    groups = {worker["groupName"]: worker for worker in workers}
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert started_with(head) == {HOLDER: 32}
    (container,) = head["template"]["spec"]["containers"]
    assert float(container["resources"]["limits"]["memory"].removesuffix("Gi")) > 32 * OF_A_TRIAL + OF_THE_REST
    assert started_with(groups["pruner"]) == {PRUNER: 16}
    assert started_with(groups["trainer"]) == {}
    for group in (head, *workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay wants text"
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert all((worker["replicas"], worker["minReplicas"]) == (0, 0) for worker in workers)
    assert "nvidia.com/gpu" in groups["trainer"]["template"]["spec"]["containers"][0]["resources"]["limits"]


def started_with(group: dict[str, Any]) -> dict[str, Any]:
    """The custom resources of a group: KubeRay passes the text on to a shell, which takes the outer quotes off."""
    (text,) = shlex.split(group["rayStartParams"].get("resources", "'{}'"))
    found: dict[str, Any] = json.loads(text)
    return found
