"""The KubeRay manifests: known fields only, names that exist, and commands and settings that our own configuration takes."""

from __future__ import annotations

import copy
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UsageError
from infra import check_kuberay as manifests
from jobs.main import parse

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here: overlays cannot be rendered")


@pytest.fixture(params=["base", *(pytest.param(name, marks=needs_kubectl) for name in manifests.OVERLAYS)])
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return manifests.base_documents() if request.param == "base" else manifests.render(request.param)


def test_nothing_is_wrong(documents: list[dict[str, Any]]) -> None:
    assert list(manifests.problems(documents)) == []
    kinds = [document["kind"] for document in documents]
    assert (kinds.count("RayJob"), kinds.count("RayService"), kinds.count("RayCluster")) == (3, 1, 1)
    assert "Secret" not in kinds, "secrets are named and never written"


def test_what_is_misspelt_or_dangling_is_found() -> None:
    documents = manifests.base_documents()

    def broken(change: Any) -> str:
        changed = copy.deepcopy(documents)
        change({document["kind"]: document for document in changed})
        return "\n".join(manifests.problems(changed))

    assert "backofLimit" in broken(lambda kinds: kinds["RayJob"]["spec"].update(backofLimit=3))
    assert "workerGroups" in broken(lambda kinds: kinds["RayCluster"]["spec"].update(workerGroups=[]))
    assert "must be ray.io/v1" in broken(lambda kinds: kinds["RayCluster"].update(apiVersion="ray.io/v1alpha1"))
    assert "no ServiceAccount cleanplate" in broken(lambda kinds: kinds["ServiceAccount"]["metadata"].update(name="other"))
    pod = "template"

    def unmount(kinds: dict[str, Any]) -> None:
        kinds["RayCluster"]["spec"]["headGroupSpec"][pod]["spec"]["volumes"].pop(0)

    assert "mounts shared-memory, which is no volume" in broken(unmount)


def commands(documents: list[dict[str, Any]]) -> list[list[str]]:
    return [shlex.split(document["spec"]["entrypoint"]) for document in documents if document["kind"] == "RayJob"]


def check(words: list[str], settings: Path) -> None:
    """Parse a command line as cleanplate does; ``settings`` stands for the mounted file."""
    assert words[0] == "cleanplate"
    parse(words[1], [str(settings) if word == "/etc/cleanplate/rounds.yaml" else word for word in words[2:]])


def test_commands_are_ones_that_cleanplate_takes(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    (rounds,) = (
        document for document in documents if document["kind"] == "ConfigMap" and document["metadata"]["name"] == "cleanplate-rounds"
    )
    settings = tmp_path / "rounds.yaml"
    settings.write_text(rounds["data"]["rounds.yaml"])
    found = commands(documents)
    assert sorted(words[1] for words in found) == ["clean", "rounds", "train"]
    for words in found:
        check(words, settings)
    (cleaning,) = (words for words in found if words[1] == "clean")
    for wrong in (["--max-actorz", "3"], ["--max-actors", "many"], ["--threshold", "2"]):
        with pytest.raises(UsageError):
            check([*cleaning, *wrong], settings)
    settings.write_text("folder: s3://x/y\nroundz: 3\n")
    with pytest.raises(UsageError, match="roundz"):
        check(next(words for words in found if words[1] == "rounds"), settings)


def test_the_rounds_settings_are_whole(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    from jobs.rounds_config import settings_of

    (rounds,) = (
        document for document in documents if document["kind"] == "ConfigMap" and document["metadata"]["name"] == "cleanplate-rounds"
    )
    path = tmp_path / "rounds.yaml"
    path.write_text(rounds["data"]["rounds.yaml"])
    assert settings_of(parse("rounds", ["run", "--config", str(path)])).collections


def test_the_served_settings_are_ones_that_the_graph_takes(documents: list[dict[str, Any]]) -> None:
    from ray.serve.schema import ServeDeploySchema

    from serving.settings import ServingSettings

    (service,) = (document["spec"] for document in documents if document["kind"] == "RayService")
    schema = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    (application,) = schema.applications
    assert application.import_path == "serving.app:build"
    settings = ServingSettings.of(application.args)
    assert settings.store.startswith("s3://"), "uploads must be seen by every ingress replica"
    with pytest.raises(UsageError):
        ServingSettings.of({**application.args, "max_replica": 3})


def test_pods_are_bounded_and_unprivileged(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        for pod in manifests.pods(document):
            for container in pod["containers"]:
                resources = container["resources"]
                assert resources["requests"]["memory"] == resources["limits"]["memory"], (
                    "Ray sizes its store by the memory that it is given"
                )
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert all("SECRET" not in entry["name"] for entry in container.get("env", [])), "secrets come by reference"
    (cluster,) = (document["spec"] for document in documents if document["kind"] == "RayCluster")
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        mounts = {mount["mountPath"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]}
        assert {"/dev/shm", "/tmp/ray", "/models"} <= mounts
        gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        assert group["rayStartParams"].get("num-gpus") == gpus, "Ray and Kubernetes must count the same GPUs"


def test_spot_nodes_are_asked_for_first_and_give_way_first() -> None:
    documents = manifests.base_documents()
    (cluster,) = (document["spec"] for document in documents if document["kind"] == "RayCluster")
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert groups["gpu-spot"]["priority"] > groups["gpu"]["priority"]
    assert groups["cpu"]["template"]["spec"].get("tolerations") is None
    classes = {document["metadata"]["name"]: document["value"] for document in documents if document["kind"] == "PriorityClass"}
    assert classes["cleanplate-spot"] < classes["cleanplate-job"] < classes["cleanplate-serving"]
    assert groups["gpu-spot"]["template"]["spec"]["priorityClassName"] == "cleanplate-spot"


def test_no_version_is_forgotten() -> None:
    import ray

    (cluster,) = (document["spec"] for document in manifests.base_documents() if document["kind"] == "RayCluster")
    assert cluster["rayVersion"] == ray.__version__
