"""The Kubernetes overlays: they render, fit the API's schemas, and say the same as the config they run."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from tests.paths import ROOT
from vcppo.common.config import load_config
from vcppo.deploy.container import ROLES, run_config
from vcppo.deploy.launch.nodes import Nodes
from vcppo.deploy.placement.gpus import Device
from vcppo.deploy.placement.place import Part, place

FOLDER = ROOT / "deploy" / "kubernetes"
CONFIGS = {"cpu": "demo.yaml", "gpu": "paper_qwen32b.yaml"}
VERSIONS = ("1.32.0", "1.37.0")


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    tools = {"kustomize": ["kustomize", "build"], "kubectl": ["kubectl", "kustomize"]}
    command = next((words for tool, words in tools.items() if shutil.which(tool)), None)
    if command is None:
        pytest.skip("neither kustomize nor kubectl is on PATH: nothing can render the overlays")
    done = subprocess.run(
        [*command, FOLDER / "overlays" / overlay], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()
    return list(yaml.safe_load_all(done.stdout))


def one(overlay: str, kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in rendered(overlay) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """Pod specs by name of what makes them."""
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"]
            for each in rendered(overlay) if "template" in each.get("spec", {})}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", CONFIGS)
def test_schemas(overlay: str, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (make setup)")
    for each in rendered(overlay):
        validator.validate(each, version, strict=True)


@pytest.mark.parametrize("overlay", CONFIGS)
def test_every_pod_is_locked_down(overlay: str) -> None:
    for name, pod in pods(overlay).items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
            assert not container["image"].endswith("latest")


@pytest.mark.parametrize("overlay", CONFIGS)
def test_volumes_secrets_and_selectors_fit(overlay: str) -> None:
    secrets = {"vcppo-public", "vcppo-redis", "vcppo-buffer", "vcppo-generator", "vcppo-learner"}
    names = {(each["kind"], each["metadata"]["name"]) for each in rendered(overlay)}
    roles = set(pods(overlay))
    text = (FOLDER / "README.md").read_text()
    for name, pod in pods(overlay).items():
        claimed = {"data"} if name == "redis" else set()
        volumes = {volume["name"] for volume in pod["volumes"]} | claimed
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == volumes, name
        for volume in pod["volumes"]:
            sources = volume.get("projected", {}).get("sources", [volume])
            for secret in (source["secret"] for source in sources if "secret" in source):
                asked = secret.get("secretName", secret.get("name"))
                assert asked in secrets
                if asked.removeprefix("vcppo-") in roles - {"redis"}:
                    assert asked == f"vcppo-{name}", "a role must not read another's secret key"
                for item in secret.get("items", []):
                    assert item["key"].replace(name, "$role") in text or item["key"] in text
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
    for service in ("redis", "buffer", "learner"):
        assert one(overlay, "Service", service)["spec"]["selector"]["app.kubernetes.io/name"] in roles


@pytest.mark.parametrize(("overlay", "original"), CONFIGS.items())
def test_the_run_is_the_config_it_is_named_after(overlay: str, original: str) -> None:
    """Kustomize reads no file outside its folder, so there is a copy."""
    copy = FOLDER / "overlays" / overlay / "run.yaml"
    assert copy.read_text() == (ROOT / "deploy" / "configs" / original).read_text()


@pytest.mark.parametrize("overlay", CONFIGS)
def test_shapes_agree_with_the_config(overlay: str) -> None:
    config = load_config(FOLDER / "overlays" / overlay / "run.yaml", [])
    job = one(overlay, "Job", "learner")["spec"]
    (learner,) = job["template"]["spec"]["containers"]
    environment = {each["name"]: each.get("value") for each in learner["env"]}
    found = Nodes.from_environment({**environment, "VCPPO_NODE": "0"})
    assert found is not None
    nodes, ranks = found.count, config.learner.num_ranks // found.count
    assert job["completionMode"] == "Indexed"
    assert (job["completions"], job["parallelism"]) == (nodes, nodes)
    assert nodes * ranks == config.learner.num_ranks
    generators = one(overlay, "Deployment", "generator")["spec"]
    assert generators["replicas"] == config.generator.num_generators
    limits = generators["template"]["spec"]["containers"][0]["resources"].get("limits", {})
    assert limits.get("nvidia.com/gpu", 1) == config.generator.tensor_parallel_size
    assert learner["resources"].get("limits", {}).get("nvidia.com/gpu", 1) == ranks
    for container, part in ((learner, Part(ranks, 0)), (generators["template"]["spec"]["containers"][0], Part(0, 1))):
        count = container["resources"].get("limits", {}).get("nvidia.com/gpu", 0)
        seen = [Device(str(number)) for number in range(count)]
        assert place(config, seen, [None], part=part).free == ()  # each pod's GPUs are all used, and are enough
    port = one(overlay, "Service", "learner")["spec"]["ports"][0]["port"]
    assert environment["VCPPO_RENDEZVOUS"] == f"learner-0.learner:{port}"
    assert environment["VCPPO_ADDRESS"] == "learner-$(VCPPO_NODE).learner"
    nodes_by_address = sorted(f"learner-{index}.learner" for index in range(200))  # how torchrun gives out ranks
    assert nodes_by_address[0] == "learner-0.learner"


@pytest.mark.parametrize("overlay", CONFIGS)
def test_every_role_is_one_the_image_knows(overlay: str) -> None:
    for name in ("prepare", "buffer", "generator", "learner"):
        (container,) = pods(overlay)[name]["containers"]
        assert "command" not in container  # the image's entry point is vcppo.deploy.container
        assert container["args"] == [name]
        assert name in ROLES


@pytest.mark.parametrize("overlay", CONFIGS)
def test_the_config_that_prepare_writes_fits_the_cluster(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = pods(overlay)["prepare"]["containers"]
    given = {each["name"]: each["value"] for each in container["env"]}
    shared = one(overlay, "ConfigMap", container["envFrom"][0]["configMapRef"]["name"])["data"]
    monkeypatch.setenv("VCPPO_KEYS", shared["VCPPO_KEYS"])
    path = FOLDER / "overlays" / overlay / "run.yaml"
    config, _ = run_config(path, shared["VCPPO_RUN"], given["VCPPO_SET"].split())
    assert config.broadcast.host == "learner-0.learner"
    assert config.security.curve == "always"
    assert (config.security.keys, config.redis.password_file) == ("/keys", "/keys/redis.password")
    services = {
        each["metadata"]["name"]: each["spec"]["ports"] for each in rendered(overlay) if each["kind"] == "Service"
    }
    assert config.redis.url == f"redis://redis:{services['redis'][0]['port']}/0"
    assert config.transport.endpoints == [f"tcp://buffer:{services['buffer'][0]['port']}"]
    ports = {port["containerPort"] for name in ("buffer", "generator", "learner")
             for port in pods(overlay)[name]["containers"][0]["ports"] if port["name"] == "metrics"}  # fmt: skip
    assert ports == {config.metrics.prometheus_port}


@pytest.mark.parametrize("overlay", CONFIGS)
def test_who_may_reach_whom(overlay: str) -> None:
    """Everything is closed by one policy; the others open what the design needs and no more."""
    policies = {each["metadata"]["name"]: each["spec"] for each in rendered(overlay) if each["kind"] == "NetworkPolicy"}
    assert policies["nobody"]["podSelector"] == {}
    assert set(policies["nobody"]["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in policies["nobody"]
    (redis,) = policies["redis"]["ingress"]
    assert redis["from"][0]["podSelector"]["matchExpressions"][0]["values"] == ["buffer", "generator", "learner"]
    (buffer,) = policies["buffer"]["ingress"]
    assert buffer["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "generator"}
