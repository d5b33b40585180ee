"""The manifest says what this server understands: its flags, its environment names, its paths, its times."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxserve.cli_flags import ENVIRONMENT_PREFIX, Parser, add_flags, build, gather
from jaxserve.core.config import EngineArgs
from server.app import build_app
from server.args import ServerArgs
from server.context import ServerContext

MANIFEST = Path(__file__).parents[2] / "deploy" / "kubernetes" / "one-gpu.yaml"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The manifest's objects by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture(scope="module")
def container(objects: dict[str, Any]) -> dict[str, Any]:
    [container] = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container


@pytest.fixture(scope="module")
def server_args(container: dict[str, Any]) -> ServerArgs:
    """What the command line asks for; refused flags and values end the test."""
    parser = Parser()
    parser.add_argument("model_tag", nargs="?")
    add_flags(parser, EngineArgs, ServerArgs)
    values = gather(parser.parse(container["args"]), EngineArgs, ServerArgs)
    build(EngineArgs, values)
    return build(ServerArgs, values)


def test_objects_have_what_kubernetes_asks_for(objects: dict[str, Any]) -> None:
    versions = {kind: one["apiVersion"] for kind, one in objects.items()}
    assert versions == {"Deployment": "apps/v1", "Service": "v1"}
    deployment, service = objects["Deployment"]["spec"], objects["Service"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert service["selector"].items() <= labels.items()
    assert all(isinstance(value, str) for value in deployment["template"]["metadata"]["annotations"].values())


def test_command_and_environment_are_ours(container: dict[str, Any], server_args: ServerArgs) -> None:
    assert container["command"] == ["jaxserve", "serve"]
    names = {f"{ENVIRONMENT_PREFIX}{one.name.upper()}" for kind in (EngineArgs, ServerArgs) for one in fields(kind)}
    ours = {one["name"] for one in container["env"] if one["name"].startswith(ENVIRONMENT_PREFIX)}
    assert ours
    assert ours <= names
    mounts = {one["name"] for one in container["volumeMounts"]}
    assert mounts == {"cache"}


def test_ports_and_probes_meet_the_server(
    objects: dict[str, Any], container: dict[str, Any], server_args: ServerArgs
) -> None:
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports == {"http": server_args.port}
    assert server_args.host == "0.0.0.0"
    assert [one["targetPort"] for one in objects["Service"]["spec"]["ports"]] == ["http"]
    paths = build_app(ServerContext(server_args, ("model",))).openapi()["paths"]
    for probe in PROBES:
        assert container[probe]["httpGet"]["path"] in paths
        assert container[probe]["httpGet"]["port"] in ports


def test_there_is_time_to_drain(objects: dict[str, Any], server_args: ServerArgs) -> None:
    grace_s = objects["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s >= server_args.shutdown_timeout + 5 + 10


def test_a_whole_gpu_is_asked_for(container: dict[str, Any]) -> None:
    resources = container["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == 1


@pytest.fixture(scope="module")
def group() -> dict[str, Any]:
    """Of the manifest for two hosts: its LeaderWorkerSet and its Service."""
    return {one["kind"]: one for one in yaml.safe_load_all(MANIFEST.with_name("two-hosts.yaml").read_text())}


def test_a_group_of_hosts_is_started_alike_and_parts_as_one(group: dict[str, Any]) -> None:
    assert group["LeaderWorkerSet"]["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    template = group["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    assert template["restartPolicy"] == "RecreateGroupOnPodRestart"
    [leader], [worker] = (template[f"{role}Template"]["spec"]["containers"] for role in ("leader", "worker"))
    alike = ("image", "command", "args", "env", "resources", "volumeMounts")
    assert {key: leader[key] for key in alike} == {key: worker[key] for key in alike}
    parser = Parser()
    parser.add_argument("model_tag", nargs="?")
    add_flags(parser, EngineArgs, ServerArgs)
    values = gather(parser.parse(leader["args"]), EngineArgs, ServerArgs)
    num_gpus = leader["resources"]["limits"]["nvidia.com/gpu"]
    assert build(EngineArgs, values).tensor_parallel_size == template["size"] * num_gpus
    paths = build_app(ServerContext(build(ServerArgs, values), ("model",))).openapi()["paths"]
    assert all(leader[probe]["httpGet"]["path"] in paths for probe in PROBES)
    assert not any(probe in worker for probe in PROBES)  # only rank 0 has HTTP


def test_the_service_of_a_group_asks_its_leader_alone(group: dict[str, Any]) -> None:
    template = group["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    selector = group["Service"]["spec"]["selector"].items()
    assert selector <= template["leaderTemplate"]["metadata"]["labels"].items()
    assert not selector <= template["workerTemplate"]["metadata"]["labels"].items()
