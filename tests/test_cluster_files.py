"""The cluster files, checked without a cloud: Ray's own schema, EC2's instance table, the KubeRay CRD's shape, and
that what the jobs ask for is what the groups offer."""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from conftest import ROOT

from lfmim.config import ExtractConfig, experiment_from_dict

DOCS = ROOT / "docs" / "cluster"
LAUNCHER = {"aws": ROOT / "cluster.yaml", "local": DOCS / "on_premises.yaml"}
RAY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def manifests(name: str) -> dict[str, dict]:
    return {doc["kind"]: doc for doc in yaml.safe_load_all((DOCS / name).read_text(encoding="utf-8"))}


def environment() -> dict[str, str]:
    lines = (DOCS / "cluster.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def prepared(config: dict) -> dict:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(config))
    validate_config(config)
    return config


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """Ray keeps the state of a local cluster under its temporary folder."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_pass_rays_schema(name, own_home):
    config = load(LAUNCHER[name])
    assert prepared(config)["provider"]["type"] == name
    with pytest.raises(jsonschema.ValidationError):
        prepared({**config, "worker_commands": []})


def test_a_head_that_computes_nothing_and_two_groups_that_grow_from_zero():
    config = load(LAUNCHER["aws"])
    groups = config["available_node_types"]
    assert groups[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in groups["head"]["node_config"]
    for name in ("decode", "gpu"):
        group = groups[name]
        assert group["min_workers"] == 0 < group["max_workers"] <= config["max_workers"]
        assert group["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "GPU" not in groups["decode"]["resources"]
    assert "decode" not in groups["gpu"]["resources"]


@pytest.mark.integration
def test_instance_types_exist_and_have_what_their_group_offers(monkeypatch):
    moto, boto3 = pytest.importorskip("moto"), pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    config = load(LAUNCHER["aws"])
    with moto.mock_aws():
        ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
        zones = {z["ZoneName"] for z in ec2.describe_availability_zones()["AvailabilityZones"]}
        assert set(config["provider"]["availability_zone"].split(",")) <= zones
        for name, group in config["available_node_types"].items():
            kind = group["node_config"]["InstanceType"]
            (facts,) = ec2.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
            gpus = sum(g["Count"] for g in facts.get("GpuInfo", {}).get("Gpus", []))
            assert group["resources"].get("GPU", 0) == gpus, name
            if name != "head":
                assert group["resources"]["CPU"] == facts["VCpuInfo"]["DefaultVCpus"], name
            assert "x86_64" in facts["ProcessorInfo"]["SupportedArchitectures"]


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_commands(name, tmp_path):
    config = load(LAUNCHER[name])
    commands = [c for key, value in config.items() if key.endswith("_commands") for c in value]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):  # the variables reach Ray, so every job
        assert any("ray start" in c and c.startswith("set -a; . ~/lfmim/cluster.env; set +a;") for c in config[start])
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]  # reached through SSH
    assert any("pip install" in c and "-c ~/lfmim/constraints.txt" in c for c in config["setup_commands"])
    home = tmp_path / "lfmim"
    home.mkdir()
    for remote, local in config["file_mounts"].items():
        (home / Path(remote).name).write_bytes((ROOT / local).read_bytes())
    requirements = next(c for c in config["setup_commands"] if "requirements.txt" in c and "tomllib" in c)
    env = {**os.environ, "HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", requirements], check=True, env=env)
    assert (home / "requirements.txt").read_text().splitlines() == RAY
    names = [re.split(r"[\[=<>~! ]", line)[0].lower() for line in RAY]
    assert set(names) <= {n.lower() for n in PINNED}, "a dependency without a tested version"
    used = set(re.findall(r"\$(LFMIM_\w+|MLFLOW_\w+)", " ".join(commands)))
    assert used == {"LFMIM_SHARED", "LFMIM_NFS"} <= set(environment())


def test_on_premises_nodes_without_gpu_offer_the_decode_resource(tmp_path):
    command = load(LAUNCHER["local"])["worker_start_ray_commands"][-1].replace("~/venv/bin/ray", "echo")
    command = command.replace(". ~/lfmim/cluster.env", ":").replace("ulimit -n 65536", ":")
    for gpu, expected in ((False, {"decode"}), (True, set())):
        fake = tmp_path / str(gpu)
        fake.mkdir()
        if gpu:
            (fake / "nvidia-smi").write_text("#!/bin/sh\n")
            (fake / "nvidia-smi").chmod(0o755)
        env = {"PATH": f"{fake}:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=env)
        assert "--address=10.0.0.1:6379" in done.stdout
        given = re.search(r"--resources=(\S+)", done.stdout)
        assert set(yaml.safe_load(given[1]) if given else {}) == expected


def test_what_the_jobs_ask_for_fits_the_groups():
    groups = load(LAUNCHER["aws"])["available_node_types"]
    decode, gpu = groups["decode"]["resources"], groups["gpu"]["resources"]
    extract = ExtractConfig(**load(ROOT / "jobs" / "configs" / "cluster_extract.yaml"))
    assert extract.decode_resource in decode
    assert decode[extract.decode_resource] == decode["CPU"]  # a worker takes one of each
    assert 0 < extract.decode_workers <= groups["decode"]["max_workers"] * decode["CPU"]
    actors = extract.face_workers + 3 * extract.encoder_workers
    assert (1 / extract.gpus_per_worker).is_integer()
    assert actors * extract.gpus_per_worker <= groups["gpu"]["max_workers"] * gpu["GPU"]
    run = experiment_from_dict(load(ROOT / "jobs" / "configs" / "paper.yaml")).run
    assert run.gpus_per_worker <= gpu["GPU"]
    assert run.cpus_per_worker <= gpu["CPU"]
    assert run.workers * run.gpus_per_worker <= groups["gpu"]["max_workers"] * gpu["GPU"]


# The fields of RayCluster and RayJob (ray.io/v1) and of the pod templates in them that the manifests use, with the
# CRDs' types and required fields; anything else is refused, so a misspelt field does not pass.
def closed(required: str = "", **properties) -> dict:
    return {"type": "object", "required": required.split(), "properties": properties, "additionalProperties": False}


def array(items: dict) -> dict:
    return {"type": "array", "items": items, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9.]+([EPTGMk]i?|m)?$"}}
NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
CONTAINER = closed(
    "name image", name=NAME, image=TEXT, envFrom=array(closed("configMapRef", configMapRef=closed("name", name=NAME))),
    ports=array(closed("containerPort", containerPort={"type": "integer"}, name={**NAME, "maxLength": 15})),
    resources=closed(limits=QUANTITIES, requests=QUANTITIES),
    volumeMounts=array(closed("name mountPath", name=NAME, mountPath=TEXT)),
)
POD = closed("spec", spec=closed(
    "containers", containers=array(CONTAINER), restartPolicy={"enum": ["Never", "OnFailure"]},
    volumes=array(closed("name persistentVolumeClaim", name=NAME,
                         persistentVolumeClaim=closed("claimName", claimName=NAME))),
))
CLUSTER = closed(
    "headGroupSpec", rayVersion=TEXT, enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=closed(upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
                             idleTimeoutSeconds=COUNT),
    headGroupSpec=closed("rayStartParams template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=array(closed("groupName maxReplicas minReplicas rayStartParams template", groupName=NAME,
                                  replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, rayStartParams=TEXTS,
                                  template=POD)),
)
JOB = closed(
    "entrypoint", entrypoint=TEXT, clusterSelector=TEXTS, submitterPodTemplate=POD,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
)
RESOURCE = {"RayCluster": CLUSTER, "RayJob": JOB}


@pytest.mark.parametrize(("name", "kind"), [("kuberay.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")])
def test_manifests_have_the_crds_shape(name, kind):
    doc = manifests(name)[kind]
    schema = closed("apiVersion kind metadata spec", apiVersion={"const": "ray.io/v1"}, kind={"const": kind},
                    metadata=closed(name=NAME, generateName=TEXT), spec=RESOURCE[kind])
    jsonschema.validate(doc, schema)
    wrong = copy.deepcopy(doc)
    wrong["spec"]["rayclusterSpec"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_kuberay_offers_what_the_launcher_offers():
    docs = manifests("kuberay.yaml")
    spec, aws = docs["RayCluster"]["spec"], load(LAUNCHER["aws"])["available_node_types"]
    assert spec["rayVersion"] == PINNED["ray"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {g["groupName"]: g for g in spec["workerGroupSpecs"]}
    assert set(groups) == set(aws) - {"head"}
    for name, group in groups.items():
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        offered = {"CPU": int(limits["cpu"])}
        if "nvidia.com/gpu" in limits:
            offered["GPU"] = int(limits["nvidia.com/gpu"])
        if "resources" in group["rayStartParams"]:  # KubeRay wants JSON in quotes for the shell
            offered |= yaml.safe_load(shlex.split(group["rayStartParams"]["resources"])[0])
        assert offered == aws[name]["resources"]
        assert (group["minReplicas"], group["maxReplicas"]) == (aws[name]["min_workers"], aws[name]["max_workers"])
        assert container["image"] == "lfmim-on-ray:" + tomllib.loads((ROOT / "pyproject.toml").read_text())[
            "project"]["version"]
    assert set(docs["ConfigMap"]["data"]) == set(environment()) - {"LFMIM_NFS"}
    (volume,) = spec["headGroupSpec"]["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == docs["PersistentVolumeClaim"]["metadata"]["name"]


def test_the_ray_job_names_the_cluster_and_files_of_the_image():
    job, image = manifests("rayjob.yaml")["RayJob"]["spec"], (DOCS / "Dockerfile").read_text()
    assert job["clusterSelector"]["ray.io/cluster"] == manifests("kuberay.yaml")["RayCluster"]["metadata"]["name"]
    assert f"FROM rayproject/ray:{PINNED['ray']}-py311\n" in image
    home = re.search(r"^WORKDIR (\S+)", image, re.M)[1]
    files = [a for a in shlex.split(job["entrypoint"]) if a.startswith(home)]
    assert len(files) == 2
    copied = re.findall(r"^COPY --chown=\S+ (\S+) \1$", image, re.M)
    for file in files:
        inside = Path(file).relative_to(home)
        assert inside.parts[0] in copied
        assert (ROOT / inside).is_file()


def upload_bytes(folder: Path, zipped: Path) -> int:
    from ray._private.runtime_env.packaging import create_package

    create_package(str(folder), zipped, include_gitignore=True, excludes=[])
    return zipped.stat().st_size


def test_the_upload_of_a_submitted_job_stays_small(tmp_path):
    """What users have lying about in a checkout stays at home."""
    checkout = tmp_path / "checkout"
    names = [n for n in subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True,
                                       check=True).stdout.splitlines() if (ROOT / n).is_file()]
    for name in names:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    clean = upload_bytes(checkout, tmp_path / "clean.zip")
    for name in (".git/objects/pack/x", ".venv/lib/x.so", "demo/corpus/x", "features/part-0.parquet", "runs/mlflow.db",
                 "predictions.parquet.parts/x", "p.jsonl.features/part-1.parquet", "clip.mp4", "simulated/x"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(os.urandom(6_000_000))
    full = upload_bytes(checkout, tmp_path / "full.zip")
    assert full == clean < 5_000_000
