"""Whether the KubeRay manifests are ones that KubeRay and Kubernetes would take.

    python -m infra.check_kuberay                 # renders every overlay with kubectl, and checks it against the fields written below
    python -m infra.check_kuberay --crds FOLDER   # and against the ray.io_*.yaml of KubeRay (its ray-operator/config/crd/bases)

The schema below holds the fields that we use of the published CRDs of KubeRay 1.7 (snapshot of 2026-08-19), as facts, with everything else
refused: a misspelt field, which Kubernetes would drop in silence, is an error here.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import yaml

FOLDER: Final = Path(__file__).resolve().parent / "kuberay"
OVERLAYS: Final = ("dev", "prod")
TEXT: Final = {"type": "string"}
NUMBER: Final = {"type": "integer", "minimum": 0}
YES: Final = {"type": "boolean"}
TEXTS: Final = {"type": "object", "additionalProperties": TEXT}


def _fields(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": fields}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


_LABELLED: Final = _fields(labels=TEXTS)
_EXEC: Final = _fields(("command",), command=_list(TEXT))
_PROBE: Final = _fields(
    ("exec", "timeoutSeconds"), exec=_EXEC, initialDelaySeconds=NUMBER, periodSeconds=NUMBER, timeoutSeconds=NUMBER, failureThreshold=NUMBER
)
_CONTAINER: Final = _fields(
    ("name", "image", "securityContext", "resources"),
    name=TEXT,
    image=TEXT,
    securityContext=_fields(
        ("allowPrivilegeEscalation",), allowPrivilegeEscalation={"const": False}, capabilities=_fields(drop=_list(TEXT))
    ),
    envFrom=_list(_fields(configMapRef=_fields(name=TEXT), secretRef=_fields(name=TEXT))),
    env=_list(_fields(("name",), name=TEXT, value=TEXT)),
    ports=_list(_fields(("containerPort",), containerPort=NUMBER, name=TEXT)),
    resources=_fields(("requests", "limits"), requests=TEXTS, limits=TEXTS),
    readinessProbe=_PROBE,
    livenessProbe=_PROBE,
    lifecycle=_fields(preStop=_fields(exec=_EXEC)),
    volumeMounts=_list(_fields(("mountPath", "name"), mountPath=TEXT, name=TEXT, readOnly=YES)),
)
_VOLUME: Final = _fields(
    ("name",),
    name=TEXT,
    emptyDir=_fields(("sizeLimit",), medium=TEXT, sizeLimit=TEXT),
    persistentVolumeClaim=_fields(claimName=TEXT),
    configMap=_fields(name=TEXT),
    secret=_fields(secretName=TEXT, optional=YES),
)
_POD: Final = _fields(
    ("containers", "securityContext"),
    serviceAccountName=TEXT,
    automountServiceAccountToken={"const": False},
    enableServiceLinks=YES,
    priorityClassName=TEXT,
    terminationGracePeriodSeconds=NUMBER,
    restartPolicy=TEXT,
    securityContext=_fields(
        ("runAsNonRoot",), runAsNonRoot={"const": True}, runAsUser=NUMBER, fsGroup=NUMBER, seccompProfile=_fields(type=TEXT)
    ),
    tolerations=_list(_fields(key=TEXT, operator=TEXT, effect=TEXT)),
    nodeSelector=TEXTS,
    containers=_list(_CONTAINER),
    volumes=_list(_VOLUME),
)
_TEMPLATE: Final = _fields(("spec",), metadata=_LABELLED, spec=_POD)
CLUSTER: Final = _fields(
    ("headGroupSpec", "workerGroupSpecs", "rayVersion", "authOptions"),
    rayVersion=TEXT,
    enableInTreeAutoscaling=YES,
    autoscalerOptions=_fields(
        version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=NUMBER, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
    authOptions=_fields(("mode", "secretName"), mode={"const": "token"}, secretName=TEXT),
    headGroupSpec=_fields(("template",), rayStartParams=TEXTS, template=_TEMPLATE),
    workerGroupSpecs=_list(
        _fields(
            ("groupName", "template", "minReplicas", "maxReplicas"),
            groupName=TEXT,
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            idleTimeoutSeconds=NUMBER,
            priority=NUMBER,
            labels=TEXTS,
            rayStartParams=TEXTS,
            template=_TEMPLATE,
        )
    ),
)
SPECS: Final[dict[str, dict[str, Any]]] = {
    "RayCluster": CLUSTER,
    "RayJob": _fields(
        ("entrypoint", "rayClusterSpec", "backoffLimit"),
        entrypoint=TEXT,
        backoffLimit=NUMBER,
        activeDeadlineSeconds=NUMBER,
        shutdownAfterJobFinishes=YES,
        ttlSecondsAfterFinished=NUMBER,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterConfig=_fields(backoffLimit=NUMBER),
        submitterPodTemplate=_TEMPLATE,
        rayClusterSpec=CLUSTER,
    ),
    "RayService": _fields(
        ("rayClusterConfig", "serveConfigV2"),
        upgradeStrategy=_fields(type={"enum": ["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]}),
        excludeHeadPodFromServeSvc=YES,
        rayClusterDeletionDelaySeconds=NUMBER,
        serveConfigV2=TEXT,
        rayClusterConfig=CLUSTER,
    ),
}


def render(overlay: str) -> list[dict[str, Any]]:
    """The documents of an overlay, as ``kubectl apply -k`` would send them."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)], capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise SystemExit(f"overlay {overlay}: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def base_documents() -> list[dict[str, Any]]:
    """The documents of the base, with the cluster's specification in jobs and service: what the component does, without kubectl."""
    names = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())["resources"]
    found = [document for name in names for document in yaml.safe_load_all((FOLDER / "base" / name).read_text()) if document]
    (cluster,) = (document["spec"] for document in found if document["kind"] == "RayCluster")
    for document in found:
        if document["kind"] == "RayJob":
            document["spec"]["rayClusterSpec"] = cluster
        elif document["kind"] == "RayService":
            document["spec"]["rayClusterConfig"] = cluster
    return found


def problems(documents: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong: fields that are not known, kinds of values, and names that nothing has."""
    named = {(document["kind"], document["metadata"]["name"]) for document in documents}
    for document in documents:
        where = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] in SPECS:
            if document["apiVersion"] != "ray.io/v1":
                yield f"{where}: apiVersion {document['apiVersion']}, must be ray.io/v1"
            for error in jsonschema.Draft202012Validator(SPECS[document["kind"]]).iter_errors(document["spec"]):
                yield f"{where}: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for pod in pods(document):
            yield from (f"{where}: {text}" for text in _dangling(pod, named))


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod specification below ``value``."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


def _dangling(pod: dict[str, Any], named: set[tuple[str, str]]) -> Iterator[str]:
    """References to what is neither among the documents nor a secret, and mounts without a volume."""
    wanted = [("ServiceAccount", pod.get("serviceAccountName")), ("PriorityClass", pod.get("priorityClassName"))]
    volumes = pod.get("volumes", [])
    wanted += [("PersistentVolumeClaim", volume.get("persistentVolumeClaim", {}).get("claimName")) for volume in volumes]
    wanted += [("ConfigMap", volume.get("configMap", {}).get("name")) for volume in volumes]
    for container in pod["containers"]:
        wanted += [("ConfigMap", source.get("configMapRef", {}).get("name")) for source in container.get("envFrom", [])]
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        for name in mounted - {volume["name"] for volume in volumes}:
            yield f"{container['name']} mounts {name}, which is no volume of the pod"
    for kind, name in wanted:
        if name is not None and (kind, name) not in named:
            yield f"there is no {kind} {name}"


def against_published(documents: list[dict[str, Any]], folder: Path) -> Iterator[str]:
    """What KubeRay's own CRDs say, with unknown fields refused."""
    schemas = {}
    for path in sorted(folder.glob("ray.io_*.yaml")):
        definition = yaml.safe_load(path.read_text())
        version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
        schema = _strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        schemas[definition["spec"]["names"]["kind"]] = schema
    for document in documents:
        if document["kind"] in SPECS:
            if document["kind"] not in schemas:
                yield f"{folder} has no definition of {document['kind']}"
                continue
            for error in jsonschema.Draft202012Validator(schemas[document["kind"]]).iter_errors(document):
                yield f"{document['kind']} {document['metadata']['name']}: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _strict(inner) for name, inner in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        return {}
    if (
        isinstance(made.get("properties"), dict)
        and "additionalProperties" not in made
        and not made.get("x-kubernetes-preserve-unknown-fields")
    ):
        made["additionalProperties"] = False
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crds", type=Path, help="folder with KubeRay's ray.io_*.yaml")
    options = parser.parse_args(arguments)
    sets = {"base": base_documents()}
    if shutil.which("kubectl"):
        sets |= {overlay: render(overlay) for overlay in OVERLAYS}
    else:
        print("no kubectl here: the overlays were not rendered, only the base was checked", file=sys.stderr)
    found = [f"{name}: {text}" for name, documents in sets.items() for text in problems(documents)]
    if options.crds:
        found += [f"{name}: {text}" for name, documents in sets.items() for text in against_published(documents, options.crds)]
    print("\n".join(found) or f"{', '.join(sets)}: {sum(map(len, sets.values()))} documents, nothing wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
