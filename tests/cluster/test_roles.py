"""What the nodes of a cluster may do: every kind has a role, which lets it do what Ray asks there, and no more."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count
from ray.autoscaler._private.aws import utils
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME, TAG_RAY_NODE_KIND

ROOT = Path(__file__).parents[2]
REGION, ACCOUNT = "us-east-2", "123456789012"
HEAD, WORKER = "circuit-sweeps-head", "circuit-sweeps-worker"


def policy(name: str) -> list[dict[str, Any]]:
    content = json.loads((ROOT / "deploy" / f"{name}-policy.json").read_text())
    assert content["Version"] == "2012-10-17"
    found: list[dict[str, Any]] = content["Statement"]
    return found


def listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


def cluster() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return content


def test_every_kind_of_node_has_a_role_and_workers_not_the_heads() -> None:
    kinds = cluster()["available_node_types"]
    profiles = {kind: types["node_config"]["IamInstanceProfile"]["Name"] for kind, types in kinds.items()}
    assert profiles == {"head": HEAD, "trainer": WORKER, "pruner": WORKER}
    kinds = yaml.safe_load((ROOT / "deploy" / "gcp.yaml").read_text())["available_node_types"]
    emails = {kind: [one["email"] for one in types["node_config"]["serviceAccounts"]] for kind, types in kinds.items()}
    host = "PROJECT.iam.gserviceaccount.com"
    assert emails == {"head": [f"{HEAD}@{host}"], "trainer": [f"{WORKER}@{host}"], "pruner": [f"{WORKER}@{host}"]}
    spec = yaml.safe_load((ROOT / "deploy" / "kuberay-rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    named = [group["template"]["spec"]["serviceAccountName"] for group in groups]
    assert named == [HEAD, WORKER, WORKER]
    accounts = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay-accounts.yaml").read_text()))
    assert [account["metadata"]["name"] for account in accounts] == [HEAD, WORKER]
    assert accounts[1]["automountServiceAccountToken"] is False


def test_policies_allow_the_least() -> None:
    for name in ("bucket", "head"):
        for statement in policy(name):
            assert statement["Effect"] == "Allow"
            for action in listed(statement["Action"]):
                assert "*" not in action, "no family of actions"
                if not action.startswith("ec2:Describe"):
                    assert "*" not in listed(statement["Resource"]), f"{action} on anything"
    for statement in policy("bucket"):
        assert set(listed(statement["Resource"])) <= {"arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/*"}
    passing = [statement for statement in policy("head") if "iam:PassRole" in listed(statement["Action"])]
    assert [listed(statement["Resource"]) for statement in passing] == [[f"arn:aws:iam::ACCOUNT:role/{WORKER}"]]
    assert passing[0]["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    tag = f'ray-cluster-name": "{cluster()["cluster_name"]}'
    for statement in policy("head"):
        touches = any("instance/*" in resource for resource in listed(statement["Resource"]))
        assert not touches or tag in json.dumps(statement) or "ec2:CreateAction" in json.dumps(statement)


def commands(script: str, *arguments: str) -> Iterator[list[str]]:
    """What a script calls its cloud's tool with; the tool is a stand-in that writes that down and knows the account."""
    tool = "aws" if script.startswith("aws") else "gcloud"
    noting = 'for word in "$@"; do printf "%s\\0" "$word" >&3; done; printf "\\n\\0" >&3'
    stand_in = f"exec 3>&1 1>/dev/null; {tool}() {{ echo {ACCOUNT}; {noting}; }}\n"
    text = (ROOT / "deploy" / script).read_text().replace('$(dirname "$0")', str(ROOT / "deploy"))
    done = subprocess.run(
        ["sh", "-c", stand_in + text, script, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    for call in done.stdout.split("\0\n\0") if done.stdout else ():
        if call:
            yield call.split("\0")


def call_aws(words: list[str]) -> None:
    """What the `aws` program would send: service, operation and options, by the rule that names all of them."""
    service, operation, *rest = words
    options = {
        "".join(part.capitalize() for part in name.removeprefix("--").split("-")).replace("Aws", "AWS"): value
        for name, value in zip(rest[::2], rest[1::2], strict=True)
    }
    getattr(boto3.client(service, region_name=REGION), operation.replace("-", "_"))(**options)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An account of Amazon's in moto, in which deploy/aws-roles.sh has been run."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes a key there
    with mock_aws():
        utils.resource_cache.cache_clear()
        utils.client_cache.cache_clear()
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        for words in commands("aws-roles.sh", "bucket"):
            if words[:2] != ["sts", "get-caller-identity"] and words[1] != "create-service-linked-role":
                call_aws(words)
        yield
    utils.resource_cache.cache_clear()
    utils.client_cache.cache_clear()


def test_what_ray_up_asks_of_amazon(account: None) -> None:
    """The head and workers run under the roles that are named; Ray makes none of its own."""
    config = prepare_config(cluster())
    (image,) = boto3.client("ec2", region_name=REGION).describe_images(Owners=["amazon"])["Images"][:1]
    for kind in config["available_node_types"].values():
        kind["node_config"]["ImageId"] = image["ImageId"]  # moto knows few
    config = bootstrap_aws(config)
    iam = boto3.client("iam", region_name=REGION)
    assert {role["RoleName"] for role in iam.list_roles()["Roles"]} == {HEAD, WORKER}
    assert "IamInstanceProfile" not in config["head_node"]
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    profiles = {}
    for kind, types in config["available_node_types"].items():
        tags = {TAG_RAY_NODE_KIND: "head" if kind == "head" else "worker", "ray-user-node-type": kind}
        (made,) = provider.create_node(types["node_config"], tags, 1).values()
        profiles[kind] = made.iam_instance_profile["Arn"].rsplit("/", 1)[-1]
    assert profiles == {"head": HEAD, "trainer": WORKER, "pruner": WORKER}


def test_the_heads_role_is_enough_for_its_autoscaler(account: None) -> None:
    """Ray's own calls under the head's role. (moto looks at actions, not at resources and conditions.)"""
    config = prepare_config(cluster())
    ec2 = boto3.client("ec2", region_name=REGION)
    (image,) = ec2.describe_images(Owners=["amazon"])["Images"][:1]
    for kind in config["available_node_types"].values():
        kind["node_config"]["ImageId"] = image["ImageId"]
    config = bootstrap_aws(config)
    iam = boto3.client("iam", region_name=REGION)
    for name, statements in (("bucket", policy("bucket")), ("workers", policy("head"))):
        anywhere = [{"Effect": "Allow", "Action": one["Action"], "Resource": "*"} for one in statements]
        document = json.dumps({"Version": "2012-10-17", "Statement": anywhere})
        iam.put_role_policy(RoleName=HEAD, PolicyName=name, PolicyDocument=document)
    arn = f"arn:aws:iam::{ACCOUNT}:role/{HEAD}"
    keys = boto3.client("sts", region_name=REGION).assume_role(RoleArn=arn, RoleSessionName="head")["Credentials"]
    own = {
        "aws_access_key_id": keys["AccessKeyId"],
        "aws_secret_access_key": keys["SecretAccessKey"],
        "aws_session_token": keys["SessionToken"],
    }

    @set_initial_no_auth_action_count(0)  # type: ignore[untyped-decorator]
    def under_the_role() -> None:
        provider = AWSNodeProvider(config["provider"] | {"aws_credentials": own}, config["cluster_name"])
        pruner = config["available_node_types"]["pruner"]["node_config"]
        (node,) = provider.create_node(pruner, {TAG_RAY_NODE_KIND: "worker"}, 1)
        assert provider.non_terminated_nodes({TAG_RAY_NODE_KIND: "worker"}) == [node]
        assert provider.node_tags(node)[TAG_RAY_CLUSTER_NAME] == "circuit-sweeps"
        provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
        provider.terminate_nodes([node])
        assert provider.non_terminated_nodes({}) == []
        with pytest.raises(ClientError, match="not authorized"):
            boto3.client("ec2", region_name=REGION, **own).create_vpc(CidrBlock="10.0.0.0/16")
        s3 = boto3.client("s3", region_name=REGION, **own)
        s3.put_object(Bucket="bucket", Key="x", Body=b"x")
        with pytest.raises(ClientError, match=r"Access ?Denied|not authorized"):
            s3.delete_bucket(Bucket="bucket")

    under_the_role()


def test_the_commands_for_google_bind_what_the_files_name() -> None:
    """Read, as there is nothing here that would take them."""
    calls = [shlex.join(words) for words in commands("gcp-roles.sh", "p", "b")]
    head, worker = (f"serviceAccount:{name}@p.iam.gserviceaccount.com" for name in (HEAD, WORKER))
    made = [call for call in calls if "service-accounts create" in call]
    assert [re.search(r"create (\S+)", call).group(1) for call in made] == [HEAD, WORKER]  # type: ignore[union-attr]
    on_bucket = [call for call in calls if "storage buckets add-iam-policy-binding gs://b" in call]
    assert [member in call for member, call in zip((head, worker), on_bucket, strict=True)] == [True, True]
    assert all("roles/storage.objectUser" in call for call in on_bucket)
    (acting,) = [call for call in calls if "roles/iam.serviceAccountUser" in call]
    assert f"binding {WORKER}@" in acting
    assert head in acting
    role = yaml.safe_load((ROOT / "deploy" / "gcp-head-role.yaml").read_text())
    assert all(re.fullmatch(r"compute\.\w+\.\w+", one) for one in role["includedPermissions"])
    assert not any("setIamPolicy" in one for one in role["includedPermissions"])
