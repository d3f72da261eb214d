"""The cluster files, checked without a cloud: Ray's own schema, EC2's instance table, the KubeRay
CRD's shape, and that what the jobs ask for is what the groups offer."""

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

from lfmim.config import ExtractConfig, experiment_from_dict
from lfmim.schema import InputError
from tests.support.toy import ROOT

DOCS = ROOT / "docs" / "cluster"
LAUNCHER = {"aws": ROOT / "cluster.yaml", "local": DOCS / "on_premises.yaml"}
RAY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def manifests(name: str) -> dict[str, dict]:
    """By kind; network policies by name."""
    docs = yaml.safe_load_all((DOCS / name).read_text(encoding="utf-8"))
    return {
        doc["metadata"]["name"] + " policy" if doc["kind"] == "NetworkPolicy" else doc["kind"]: doc
        for doc in docs
    }


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
def test_launcher_commands(name):
    config = load(LAUNCHER[name])
    commands = [c for key, value in config.items() if key.endswith("_commands") for c in value]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    # the variables reach Ray, so every job
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any(
            "ray start" in c and c.startswith("set -a; . ~/site/cluster.env; set +a;")
            for c in config[start]
        )
    # reached through SSH
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    # with RAY_AUTH_MODE=token a node without it does not start
    token = {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert token.items() <= config["file_mounts"].items()
    used = set(re.findall(r"\$(LFMIM_\w+|MLFLOW_\w+)", " ".join(commands)))
    assert used == {"LFMIM_SHARED", "LFMIM_NFS"} <= set(environment())


@pytest.mark.parametrize("name", LAUNCHER)
def test_nodes_start_the_image_and_install_nothing_that_it_has(name, own_home):
    from ray.autoscaler.sdk import get_docker_host_mount_location

    config = load(LAUNCHER[name])
    docker = config["docker"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert docker["image"] == f"lfmim-on-ray:{version}"
    commands = [c for key, value in config.items() if key.endswith("_commands") for c in value]
    assert not [c for c in commands if "pip install" in c and "boto3" not in c]
    # the same name inside as outside, where it is mounted before the container starts
    shared = environment()["LFMIM_SHARED"]
    assert f"-v {shared}:{shared}" in docker["run_options"]
    (folder,) = (to for to, local in config["file_mounts"].items() if local == "docs/cluster")
    on_the_host = get_docker_host_mount_location(config["cluster_name"]) + folder
    (mount,) = (c for c in config["initialization_commands"] if "mount -t nfs4" in c)
    assert mount.startswith(f". {on_the_host}/cluster.env;")
    home = re.search(r"^WORKDIR (\S+)/\w+$", (DOCS / "Dockerfile").read_text(), re.M)[1]
    assert folder == f"{home}/site"


def test_the_image_has_the_tested_versions_and_all_that_a_job_imports(tmp_path):
    lines = (DOCS / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    kinds = [kind for kind, _ in steps]
    assert kinds[0] == "FROM"
    assert set(kinds) <= {"FROM", "WORKDIR", "COPY", "RUN", "ENV"}
    assert f"FROM rayproject/ray:{PINNED['ray']}-py311" in lines
    copied: list[str] = []
    for kind, rest in steps:
        if kind == "COPY":
            copied += [word for word in rest.split()[:-1] if not word.startswith("--")]
    assert all((ROOT / name).exists() for name in copied)
    assert {"lfmim", "feature_service", "jobs", "pyproject.toml", "constraints.txt"} == set(copied)
    # what is installed is what pyproject.toml asks for, in the tested versions
    (run,) = (rest for kind, rest in steps if kind == "RUN")
    listing, install = run.split(" && ")[0], run.split("&&")[1]
    assert "-c constraints.txt -r requirements.txt" in install
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", listing.split("&&")[0]], check=True, env=env, cwd=tmp_path)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*RAY, *project["optional-dependencies"]["serve"]]
    assert (tmp_path / "requirements.txt").read_text().splitlines() == wanted
    names = [re.split(r"[\[=<>~! ]", line)[0].lower() for line in wanted]
    assert set(names) <= {n.lower() for n in PINNED}, "a dependency without a tested version"


def test_on_premises_nodes_without_gpu_offer_the_decode_resource(tmp_path):
    command = load(LAUNCHER["local"])["worker_start_ray_commands"][-1]
    command = command.replace("ray start", "echo").replace(". ~/site/cluster.env", ":")
    for gpu, expected in ((False, {"decode"}), (True, set())):
        fake = tmp_path / str(gpu)
        fake.mkdir()
        if gpu:
            (fake / "nvidia-smi").write_text("#!/bin/sh\n")
            (fake / "nvidia-smi").chmod(0o755)
        env = {"PATH": f"{fake}:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, check=True, env=env
        )
        assert "--address=10.0.0.1:6379" in done.stdout
        given = re.search(r"--resources=(\S+)", done.stdout)
        assert set(yaml.safe_load(given[1]) if given else {}) == expected


def test_what_the_jobs_ask_for_fits_the_groups():
    groups = load(LAUNCHER["aws"])["available_node_types"]
    decode, gpu = groups["decode"]["resources"], groups["gpu"]["resources"]
    extract = ExtractConfig(**load(ROOT / "lfmim" / "configs" / "cluster_extract.yaml"))
    assert extract.decode_resource in decode
    assert decode[extract.decode_resource] == decode["CPU"]  # a worker takes one of each
    assert 0 < extract.decode_workers <= groups["decode"]["max_workers"] * decode["CPU"]
    assert (1 / extract.gpus_per_worker).is_integer()
    assert (
        extract.encoder_workers * extract.gpus_per_worker
        <= groups["gpu"]["max_workers"] * gpu["GPU"]
    )
    run = experiment_from_dict(load(ROOT / "lfmim" / "configs" / "paper.yaml")).run
    assert run.gpus_per_worker <= gpu["GPU"]
    assert run.cpus_per_worker <= gpu["CPU"]
    assert run.workers * run.gpus_per_worker <= groups["gpu"]["max_workers"] * gpu["GPU"]


# The fields of RayCluster and RayJob (ray.io/v1) and of the pod templates in them that the
# manifests use, with the CRDs' types and required fields; anything else is refused, so a misspelt
# field does not pass.
def closed(required: str = "", **properties) -> dict:
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


def array(items: dict) -> dict:
    return {"type": "array", "items": items, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITIES = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^[0-9.]+([EPTGMk]i?|m)?$"},
}
NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
FLAG = {"type": "boolean"}
ID = {"type": "integer", "minimum": 1}
CONFINED = closed(
    "allowPrivilegeEscalation readOnlyRootFilesystem capabilities",
    allowPrivilegeEscalation={"const": False},
    readOnlyRootFilesystem={"const": True},
    capabilities=closed("drop", drop={"const": ["ALL"]}),
)
MOUNTS = array(closed("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG))
CONTAINER = closed(
    "name image securityContext",
    name=NAME,
    image=TEXT,
    securityContext=CONFINED,
    envFrom=array(closed("configMapRef", configMapRef=closed("name", name=NAME))),
    ports=array(
        closed("containerPort", containerPort={"type": "integer"}, name={**NAME, "maxLength": 15})
    ),
    resources=closed(limits=QUANTITIES, requests=QUANTITIES),
    volumeMounts=MOUNTS,
)
POD = closed(
    "spec",
    metadata=closed(labels=TEXTS),
    spec=closed(
        "containers securityContext",
        containers=array(CONTAINER),
        restartPolicy={"enum": ["Never", "OnFailure"]},
        automountServiceAccountToken=FLAG,
        securityContext=closed(
            "runAsNonRoot runAsUser seccompProfile",
            runAsNonRoot={"const": True},
            runAsUser=ID,
            runAsGroup=ID,
            fsGroup=ID,
            fsGroupChangePolicy={"enum": ["OnRootMismatch", "Always"]},
            seccompProfile=closed("type", type={"const": "RuntimeDefault"}),
        ),
        volumes=array(
            {
                "oneOf": [
                    closed(
                        "name persistentVolumeClaim",
                        name=NAME,
                        persistentVolumeClaim=closed("claimName", claimName=NAME),
                    ),
                    closed("name emptyDir", name=NAME, emptyDir=closed(sizeLimit=TEXT)),
                    closed("name secret", name=NAME, secret=closed("secretName", secretName=NAME)),
                ]
            }
        ),
    ),
)
CLUSTER = closed(
    "headGroupSpec authOptions",
    rayVersion=TEXT,
    gcsFaultToleranceOptions=closed(
        "redisAddress redisPassword",
        redisAddress=TEXT,
        redisPassword=closed(
            "valueFrom",
            valueFrom=closed("secretKeyRef", secretKeyRef=closed("name key", name=NAME, key=TEXT)),
        ),
    ),
    enableInTreeAutoscaling=FLAG,
    authOptions=closed("mode", mode={"const": "token"}),
    autoscalerOptions=closed(
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=COUNT,
        securityContext=CONFINED,
        volumeMounts=MOUNTS,
    ),
    headGroupSpec=closed(
        "rayStartParams template",
        serviceType={"const": "ClusterIP"},
        rayStartParams=TEXTS,
        template=POD,
    ),
    workerGroupSpecs=array(
        closed(
            "groupName maxReplicas minReplicas rayStartParams template",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)
JOB = closed(
    "entrypoint",
    entrypoint=TEXT,
    clusterSelector=TEXTS,
    submitterPodTemplate=POD,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
)
SERVICE = closed(
    "serveConfigV2 rayClusterConfig",
    serveConfigV2=TEXT,
    rayClusterConfig=CLUSTER,
    upgradeStrategy=closed("type", type={"enum": ["None", "NewCluster"]}),
)
RESOURCE = {"RayCluster": CLUSTER, "RayJob": JOB, "RayService": SERVICE}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("kuberay.yaml", "RayCluster"),
        ("rayjob.yaml", "RayJob"),
        ("rayservice.yaml", "RayService"),
    ],
)
def test_manifests_have_the_crds_shape(name, kind):
    doc = manifests(name)[kind]
    schema = closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=closed(name=NAME, generateName=TEXT),
        spec=RESOURCE[kind],
    )
    jsonschema.validate(doc, schema)
    wrong = copy.deepcopy(doc)
    wrong["spec"]["rayclusterSpec"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_what_the_head_knows_is_kept_where_only_the_cluster_reaches_it():
    docs = manifests("kuberay.yaml")
    redis, service, policy = docs["StatefulSet"], docs["Service"], docs["redis policy"]
    options = docs["RayCluster"]["spec"]["gcsFaultToleranceOptions"]
    (port,) = service["spec"]["ports"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{port['port']}"
    pod = redis["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == redis["spec"]["selector"]["matchLabels"]
    (container,) = pod["spec"]["containers"]
    # one password for both, in no file
    secret = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    (variable,) = container["env"]
    assert variable["valueFrom"]["secretKeyRef"] == secret
    assert f"$({variable['name']})" in container["args"]
    jsonschema.validate(container["securityContext"], CONFINED)
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    at = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert at["data"] == container["args"][container["args"].index("--dir") + 1]
    name = docs["RayCluster"]["metadata"]["name"]
    assert selected(labels, policy)
    assert admitted({"ray.io/cluster": name}, port["port"], policy)
    assert not admitted({"app": "anything"}, port["port"], policy)


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
        assert (group["minReplicas"], group["maxReplicas"]) == (
            aws[name]["min_workers"],
            aws[name]["max_workers"],
        )
        assert (
            container["image"]
            == "lfmim-on-ray:"
            + tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        )
    caches = {
        name for name, value in docs["ConfigMap"]["data"].items() if value.startswith("/tmp/")
    }
    assert set(docs["ConfigMap"]["data"]) - caches == set(environment()) - {
        "LFMIM_NFS",
        "RAY_AUTH_MODE",
    }
    volume, _ = spec["headGroupSpec"]["template"]["spec"]["volumes"]
    assert (
        volume["persistentVolumeClaim"]["claimName"]
        == docs["PersistentVolumeClaim"]["metadata"]["name"]
    )


def test_the_ray_job_names_the_cluster_and_files_of_the_image():
    job, image = manifests("rayjob.yaml")["RayJob"]["spec"], (DOCS / "Dockerfile").read_text()
    assert (
        job["clusterSelector"]["ray.io/cluster"]
        == manifests("kuberay.yaml")["RayCluster"]["metadata"]["name"]
    )
    assert f"FROM rayproject/ray:{PINNED['ray']}-py311\n" in image
    home = re.search(r"^WORKDIR (\S+)", image, re.M)[1]
    command = shlex.split(job["entrypoint"])
    files = [a for a in command if a.startswith(home)]
    assert len(files) == 1
    assert (ROOT / "lfmim" / "configs" / f"{command[command.index('--config') + 1]}.yaml").is_file()
    copied = re.findall(r"^COPY --chown=\S+ (\S+) \1$", image, re.M)
    for file in files:
        inside = Path(file).relative_to(home)
        assert inside.parts[0] in copied
        assert (ROOT / inside).is_file()


def test_the_service_is_one_that_can_be_built(tmp_path):
    pytest.importorskip("python_multipart", reason="needs the extra serve")
    from ray.serve.schema import ServeDeploySchema

    from feature_service.serving.deployments import build

    spec = manifests("rayservice.yaml")["RayService"]["spec"]
    config = ServeDeploySchema(**yaml.safe_load(spec["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    (tmp_path / "tokens").write_text("ann:ann-has-a-token-1\n")
    here = {
        "model": ["builtin:face"],
        "storage": str(tmp_path),
        "mlflow": "",
        "token_file": str(tmp_path / "tokens"),
    }
    assert here.keys() <= application.args.keys()
    build({**application.args, **here})
    for wrong, said in (
        ({"wrokers": 2}, "wrokers: is no option of a service"),
        ({"token_file": ""}, "token_file: .* need tokens"),
        ({"min_workers": 9}, "min_workers: 9 are more than workers"),
        ({"face": "both"}, "must be speaking or largest"),
    ):
        with pytest.raises(InputError, match=said):
            build({**application.args, **here, **wrong})

    cluster, policy = spec["rayClusterConfig"], manifests("rayservice.yaml")["lfmim-service policy"]
    assert cluster["rayVersion"] == PINNED["ray"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (g["template"] for g in groups):
        assert selected(pod["metadata"]["labels"], policy)
        (container,) = pod["spec"]["containers"]
        at = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        assert application.args["token_file"].startswith(at["tokens"] + "/")
        assert application.args["storage"].startswith(at["shared"] + "/")
    mlflow = manifests("rayservice.yaml")["mlflow-for-service policy"]
    assert admitted(policy["spec"]["podSelector"]["matchLabels"], 5000, mlflow)


def test_no_file_turns_authentication_off():
    assert environment()["RAY_AUTH_MODE"] == "token"
    for path in (
        ROOT / "Makefile",
        ROOT / ".ci" / "run",
        ROOT / "README.md",
        DOCS.with_suffix(".md"),
        *DOCS.iterdir(),
        ROOT / "cluster.yaml",
        *(ROOT / "jobs").glob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
    ):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"RAY_AUTH_MODE(=|: |\", \"|\"\] = \")disabled(?! keeps)", text), path
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & set(
        manifests("kuberay.yaml")["ConfigMap"]["data"]
    )


def selected(pod: dict[str, str], policy: dict) -> bool:
    return policy["spec"]["podSelector"]["matchLabels"].items() <= pod.items()


def admitted(pod: dict[str, str], port: int, policy: dict) -> bool:
    """Whether an ingress policy lets pods with these labels, of its own namespace, to a port."""
    return any(
        peer["podSelector"]["matchLabels"].items() <= pod.items()
        for rule in policy["spec"]["ingress"]
        for peer in rule["from"]
        if port in [p["port"] for p in rule.get("ports", [{"port": port}])]
    )


def test_only_the_cluster_the_operator_and_submitters_reach_the_pods():
    docs, job = manifests("kuberay.yaml"), manifests("rayjob.yaml")["RayJob"]["spec"]
    cluster, mlflow = docs["lfmim policy"], docs["mlflow policy"]
    name = docs["RayCluster"]["metadata"]["name"]
    node = {"ray.io/cluster": name, "ray.io/node-type": "worker"}  # as the operator labels them
    operator = {
        "app.kubernetes.io/name": "kuberay-operator",
        "app.kubernetes.io/component": "kuberay-operator",
    }
    submitter, anybody = job["submitterPodTemplate"]["metadata"]["labels"], {"app": "anything"}
    peer = {"type": "object", "required": ["podSelector"]}  # an empty `from` would admit everybody
    rule = closed(
        "from",
        **{"from": array(peer)},
        ports=array(closed("protocol port", protocol=TEXT, port=ID)),
    )
    schema = closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": "networking.k8s.io/v1"},
        kind=TEXT,
        metadata=closed("name", name=NAME),
        spec=closed(
            "podSelector policyTypes ingress",
            policyTypes={"const": ["Ingress"]},
            ingress=array(rule),
            podSelector=closed("matchLabels", matchLabels={**TEXTS, "minProperties": 1}),
        ),
    )
    for policy in (cluster, mlflow):
        jsonschema.validate(policy, schema)
    assert selected(node, cluster)
    assert not selected(node, mlflow)
    for port in (6379, 8265, 10001):
        assert admitted(node, port, cluster)
        assert not admitted(anybody, port, cluster)
        for pod in (operator, submitter):
            assert admitted(pod, port, cluster) == (port == 8265)
    (elsewhere,) = [
        p for r in cluster["spec"]["ingress"] for p in r["from"] if "namespaceSelector" in p
    ]
    assert elsewhere["podSelector"]["matchLabels"].items() <= operator.items()
    uri = docs["ConfigMap"]["data"]["MLFLOW_TRACKING_URI"]
    assert selected({"app": re.search(r"//(\w+):5000$", uri)[1]}, mlflow)
    assert admitted(node, 5000, mlflow)
    assert not any(admitted(pod, 5000, mlflow) for pod in (submitter, anybody, operator))


def test_pods_write_to_volumes_only():
    docs, job = manifests("kuberay.yaml"), manifests("rayjob.yaml")["RayJob"]["spec"]
    spec = docs["RayCluster"]["spec"]
    pods = [g["template"]["spec"] for g in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    for pod in (*pods, job["submitterPodTemplate"]["spec"]):
        (container,) = pod["containers"]
        volumes = {v["name"]: v for v in pod["volumes"]}
        at = {m["mountPath"]: volumes[m["name"]] for m in container["volumeMounts"]}
        assert at["/tmp"]["emptyDir"] == {}
    for pod in (*pods[1:], job["submitterPodTemplate"]["spec"]):
        assert pod["automountServiceAccountToken"] is False
    assert "automountServiceAccountToken" not in pods[0]  # the autoscaler's
    assert [p["name"] for p in pods[0]["containers"][0]["ports"]] == ["gcs", "dashboard"]


def upload_bytes(folder: Path, zipped: Path) -> int:
    from ray._private.runtime_env.packaging import create_package

    create_package(str(folder), zipped, include_gitignore=True, excludes=[])
    return zipped.stat().st_size


def test_the_upload_of_a_submitted_job_stays_small(tmp_path):
    """What users have lying about in a checkout stays at home."""
    checkout = tmp_path / "checkout"
    names = [
        n
        for n in subprocess.run(
            ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if (ROOT / n).is_file()
    ]
    for name in names:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    clean = upload_bytes(checkout, tmp_path / "clean.zip")
    for name in (
        ".git/objects/pack/x",
        ".venv/lib/x.so",
        "demo/corpus/x",
        "features/part-0.parquet",
        "runs/mlflow.db",
        "predictions.parquet.parts/x",
        "p.jsonl.features/part-1.parquet",
        "clip.mp4",
        "simulated/x",
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(os.urandom(6_000_000))
    full = upload_bytes(checkout, tmp_path / "full.zip")
    assert full == clean < 5_000_000
