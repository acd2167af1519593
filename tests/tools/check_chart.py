"""Checks helm/candlemesh: it lints, renders, validates against Kubernetes' schemas, and keeps the promises made below.

Called by tests/check-chart from the repository root. With --update, rewrites the snapshot of the default rendering.
"""

import argparse
import difflib
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import kubernetes_validate
import yaml

CHART = pathlib.Path("helm/candlemesh")
SNAPSHOT = pathlib.Path("tests/snapshots/chart-default.yaml")
# The oldest that Chart.yaml admits, and the newest whose schemas are at hand.
KUBERNETES = ["1.30", kubernetes_validate.latest_version()]
# Kinds of operators, which Kubernetes' own schemas do not know.
CUSTOM = {"ServiceMonitor"}

# role, engine -> port
WORKLOADS = {
    ("ingestion", None): 7101,
    ("aggregation", "v1"): 7102,
    ("aggregation", "v2"): 7102,
    ("indicator", "v1"): 7103,
    ("indicator", "v2"): 7103,
    ("sequence", "v1"): 7104,
    ("sequence", "v2"): 7104,
    ("optimizer", None): 7105,
    ("gateway", None): 8080,
}
# Every setting `candlemesh serve` reads that the chart may set; another name would stop the process.
SETTINGS = re.compile(
    r"CANDLEMESH_(LISTEN|METRICS_LISTEN|DATABASE_URL|REDIS_URL|ENGINES|GRACE"
    r"|TELEMETRY__(LOG|LOG_FORMAT|OTLP_ENDPOINT)|GATEWAY__(ALLOW_ANONYMOUS|API_KEYS_FILE)|INGESTION__BACKFILL_FOLDER"
    r"|UPSTREAMS__(INGESTION|OPTIMIZER|(AGGREGATION|INDICATOR|SEQUENCE)(_V2)?))"
)
NEEDS_DATABASE = {"ingestion", "sequence", "optimizer", "gateway"}

# name -> (overlay files, values, Secrets that the values name)
VARIANTS = {
    "default": ([], {}, {"candlemesh-database", "candlemesh-api-keys"}),
    "high availability": (["values-ha.yaml"], {}, {"candlemesh-database", "candlemesh-api-keys", "candlemesh-redis"}),
    "anonymous, own names, Redis, collector": (
        [],
        {
            "fullnameOverride": "prices",
            "database": {"existingSecret": "pg", "key": "uri"},
            "redis": {"existingSecret": "cache", "key": "uri"},
            "authentication": {"allowAnonymous": True},
            "telemetry": {"otlpEndpoint": "http://collector:4317", "log": "info,mesh=debug"},
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        },
        {"pg", "cache"},
    ),
    "everything a cluster may ask for": (
        [],
        {
            "image": {"repository": "registry.example/candlemesh", "tag": "1.2.3"},
            "imagePullSecrets": [{"name": "pull"}],
            "shutdown": {"preStopSeconds": 0, "graceSeconds": 60},
            "aggregation": {"v2": {"imageTag": "1.3.0", "replicas": 0}},
            "gateway": {"service": {"port": 80, "annotations": {"a/b": "c"}}},
            "networkPolicy": {"gatewayFrom": [{"namespaceSelector": {"matchLabels": {"edge": "true"}}}]},
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
            "priorityClassName": "high",
            "backfill": {"existingClaim": "candles"},
            "podAnnotations": {"x": "y"},
            "serviceAccount": {"annotations": {"iam": "none"}},
        },
        {"candlemesh-database", "candlemesh-api-keys", "pull"},
    ),
    "no network policies": (
        [],
        {"networkPolicy": {"enabled": False}},
        {"candlemesh-database", "candlemesh-api-keys"},
    ),
}

# What the chart must refuse, and a word of the reason it must give.
REFUSED = [
    ({"gatway": {"replicas": 3}}, "gatway"),
    ({"indicator": {"v2": {"replica": 3}}}, "replica"),
    ({"gateway": {"replicas": -1}}, "/gateway/replicas"),
    ({"telemetry": {"logFormat": "xml"}}, "/telemetry/logFormat"),
    ({"database": {"existingSecret": ""}}, "/database/existingSecret"),
    ({"authentication": {"apiKeysSecret": ""}}, "/authentication/apiKeysSecret"),
    ({"optimizer": {"env": {"PATH": "/bin"}}}, "/optimizer/env"),
    ({"optimizer": {"resources": {"limits": {"memory": "lots"}}}}, "/optimizer/resources/limits/memory"),
    (
        {"gateway": {"autoscaling": {"minReplicas": 5, "maxReplicas": 2, "targetCPUUtilizationPercentage": 50}}},
        "minReplicas 5 is above maxReplicas 2",
    ),
]


class Failures:
    def __init__(self):
        self.texts = []

    def unless(self, claim, text):
        if not claim:
            self.texts.append(text)


def render(overlays, values):
    """Returns (exit status, manifest, Helm's complaint)."""
    command = [sys.executable, "tests/tools/helm-render", str(CHART), "--set-json", json.dumps(values)]
    for overlay in overlays:
        command += ["--values", str(CHART / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def env_of(container):
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def selects(selector, labels):
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def secrets_of(pod):
    names = {entry["name"] for entry in pod.get("imagePullSecrets", [])}
    names |= {volume["secret"]["secretName"] for volume in pod.get("volumes", []) if "secret" in volume}
    for container in pod["containers"]:
        for entry in container.get("env", []):
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                names.add(reference["name"])
    return names


def check_schemas(objects, failures):
    for item in objects:
        where = f"{item['kind']} {item['metadata']['name']}"
        if item["kind"] in CUSTOM:
            continue
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(item, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(part) for part in error.path)
                failures.unless(False, f"{where}: Kubernetes {version}: {path}: {error.message}")
            except kubernetes_validate.SchemaNotFoundError as error:
                failures.unless(False, f"{where}: {error.message}")


def check_pod(deployment, secrets, failures):
    name = deployment["metadata"]["name"]
    template = deployment["spec"]["template"]
    labels, pod = template["metadata"]["labels"], template["spec"]
    role, engine = labels.get("app.kubernetes.io/component"), labels.get("candlemesh.dev/engine")

    def must(claim, text):
        failures.unless(claim, f"{name}: {text}")

    must((role, engine) in WORKLOADS, f"unexpected role and engine {role}, {engine}")
    port = WORKLOADS.get((role, engine))
    must(selects(deployment["spec"]["selector"]["matchLabels"], labels), "selector does not match its own pods")
    must(pod.get("enableServiceLinks") is False, "service links would add unknown CANDLEMESH_ settings")
    must(pod.get("automountServiceAccountToken") is False, "mounts a service account token")
    security = pod.get("securityContext", {})
    must(security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0, "may run as root")
    must(security.get("seccompProfile", {}).get("type") == "RuntimeDefault", "no seccomp profile")
    must(len(pod.get("topologySpreadConstraints", [])) == 2, "not spread over hosts and zones")
    must(secrets_of(pod) <= secrets, f"refers to Secrets that no value names: {secrets_of(pod) - secrets}")
    mounted = {volume["name"] for volume in pod.get("volumes", [])}

    must(len(pod["containers"]) == 1, "more than one container")
    container = pod["containers"][0]
    must(container["args"] == ["serve", role], f"runs {container['args']}")
    for mount in container.get("volumeMounts", []):
        must(mount["name"] in mounted, f"mounts the unknown volume {mount['name']}")
    security = container.get("securityContext", {})
    must(security.get("readOnlyRootFilesystem") is True, "root filesystem is writable")
    must(security.get("allowPrivilegeEscalation") is False, "may gain privileges")
    must(security.get("capabilities", {}).get("drop") == ["ALL"], "keeps capabilities")
    must({"cpu", "memory"} <= set(container["resources"].get("requests", {})), "no cpu and memory requests")
    must("memory" in container["resources"].get("limits", {}), "no memory limit")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        must(container.get(probe, {}).get("grpc", {}).get("port") == port, f"no gRPC {probe} on port {port}")

    names = [entry["name"] for entry in container["env"]]
    must(len(names) == len(set(names)), "an environment variable is set twice")
    for variable in names:
        must(SETTINGS.fullmatch(variable), f"{variable} is no setting of the process")
    env = env_of(container)
    must(env.get("CANDLEMESH_LISTEN") == f"0.0.0.0:{port}", f"listens on {env.get('CANDLEMESH_LISTEN')}")
    must({entry["containerPort"] for entry in container["ports"]} == {port, 9464}, "ports differ from the listeners")
    held = env.get("CANDLEMESH_ENGINES")
    must(held == engine, f"label says engine {engine}, setting {held}")
    must(("CANDLEMESH_DATABASE_URL" in env) == (role in NEEDS_DATABASE), "database address missing or needless")
    grace = int(env["CANDLEMESH_GRACE"].removesuffix("s"))
    stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    must(pod["terminationGracePeriodSeconds"] > grace + stop, "is killed before its grace has passed")
    if role == "gateway":
        keys, anonymous = env.get("CANDLEMESH_GATEWAY__API_KEYS_FILE"), env.get("CANDLEMESH_GATEWAY__ALLOW_ANONYMOUS")
        must((keys is None) == (anonymous == "true"), "must have either API keys or anonymous callers")
        folders = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        must(keys is None or any(keys.startswith(folder + "/") for folder in folders), f"{keys} is not mounted")


def check_upstreams(deployments, services, policies, failures):
    """Every upstream address leads to the role and engine its setting names, and the network policy lets it through."""
    by_name = {service["metadata"]["name"]: service for service in services}
    for caller in deployments:
        name = caller["metadata"]["name"]
        role = caller["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
        for variable, address in env_of(caller["spec"]["template"]["spec"]["containers"][0]).items():
            if not variable.startswith("CANDLEMESH_UPSTREAMS__"):
                continue
            wanted, _, second = variable.removeprefix("CANDLEMESH_UPSTREAMS__").lower().partition("_")
            host, port = re.fullmatch(r"http://([^:/]+):(\d+)", address).groups()
            service = by_name.get(host)
            failures.unless(service, f"{name}: {variable} names no Service: {address}")
            if not service:
                continue
            ports = {entry["port"]: entry["targetPort"] for entry in service["spec"]["ports"]}
            failures.unless(ports.get(int(port)) == "grpc", f"{name}: {variable}: no gRPC port {port} at {host}")
            target = service["spec"]["selector"]
            reached = target["app.kubernetes.io/component"], target.get("candlemesh.dev/engine")
            engine = None if (wanted, None) in WORKLOADS else second or "v1"
            failures.unless(reached == (wanted, engine), f"{name}: {variable} leads to {reached}")
            for policy in policies:
                if selects(policy["spec"]["podSelector"]["matchLabels"], target):
                    peers = policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchExpressions"][0]["values"]
                    failures.unless(role in peers, f"{name}: the network policy of {host} keeps it out")
                    allowed = {entry["port"] for entry in policy["spec"]["ingress"][0]["ports"]}
                    failures.unless(int(port) in allowed, f"{name}: the network policy of {host} blocks port {port}")


def check(objects, secrets, failures):
    kinds = {}
    for item in objects:
        kinds.setdefault(item["kind"], []).append(item)
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    failures.unless(len(names) == len(set(names)), "two objects of one kind share a name")
    check_schemas(objects, failures)

    deployments, services = kinds.get("Deployment", []), kinds.get("Service", [])
    pods = [item["spec"]["template"]["metadata"]["labels"] for item in deployments]
    found = {(pod.get("app.kubernetes.io/component"), pod.get("candlemesh.dev/engine")) for pod in pods}
    failures.unless(found == set(WORKLOADS), f"workloads differ: {found ^ set(WORKLOADS)}")
    accounts = {item["metadata"]["name"] for item in kinds.get("ServiceAccount", [])}
    for deployment in deployments:
        check_pod(deployment, secrets, failures)
        account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
        failures.unless(account in accounts, f"{deployment['metadata']['name']}: no ServiceAccount {account}")

    policies = kinds.get("NetworkPolicy", [])
    check_upstreams(deployments, services, policies, failures)
    selectors = [(item, item["spec"]["selector"]) for item in services]
    selectors += [(item, item["spec"]["selector"]["matchLabels"]) for item in kinds.get("PodDisruptionBudget", [])]
    selectors += [(item, item["spec"]["podSelector"]["matchLabels"]) for item in policies]
    for item, selector in selectors:
        count = sum(selects(selector, pod) for pod in pods)
        failures.unless(count == 1, f"{item['kind']} {item['metadata']['name']} selects {count} workloads, not one")
    for kind in ["Service", "PodDisruptionBudget"] + (["NetworkPolicy"] if policies else []):
        failures.unless(len(kinds.get(kind, [])) == len(WORKLOADS), f"not one {kind} per workload")

    for service in services:
        name, spec = service["metadata"]["name"], service["spec"]
        gateway = spec["selector"]["app.kubernetes.io/component"] == "gateway"
        failures.unless(spec["type"] == "ClusterIP", f"Service {name} is reachable from outside")
        failures.unless((spec.get("clusterIP") == "None") != gateway, f"Service {name}: only inner ones are headless")
        targets = {port["targetPort"] for port in spec["ports"]}
        failures.unless(targets == {"grpc", "metrics"}, f"Service {name}: unknown port")

    scaled = {item["spec"]["scaleTargetRef"]["name"] for item in kinds.get("HorizontalPodAutoscaler", [])}
    for deployment in deployments:
        name = deployment["metadata"]["name"]
        fixed = "replicas" in deployment["spec"]
        failures.unless(fixed != (name in scaled), f"{name}: needs either a replica count or an autoscaler")
    return kinds


def check_high_availability(kinds, failures):
    scalers = kinds.get("HorizontalPodAutoscaler", [])
    failures.unless(len(scalers) == len(WORKLOADS), "high availability: not one autoscaler per workload")
    for scaler in scalers:
        name, least = scaler["metadata"]["name"], scaler["spec"]["minReplicas"]
        failures.unless(least >= 2, f"{name}: {least} replica is not high availability")


def check_snapshot(manifest, update, failures):
    if update:
        SNAPSHOT.parent.mkdir(parents=True, exist_ok=True)
        SNAPSHOT.write_text(manifest)
        print(f"wrote {SNAPSHOT}")
        return
    known = SNAPSHOT.read_text() if SNAPSHOT.exists() else ""
    lines = known.splitlines(), manifest.splitlines()
    difference = list(difflib.unified_diff(*lines, str(SNAPSHOT), "rendered", lineterm=""))
    if difference:
        print("\n".join(difference[:80]))
    failures.unless(not difference, f"{SNAPSHOT} differs; if that is meant: tests/check-chart --update")


def check_version(failures):
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    workspace = tomllib.loads(pathlib.Path("Cargo.toml").read_text())["workspace"]["package"]["version"]
    failures.unless(chart == workspace, f"Chart.yaml says appVersion {chart}, Cargo.toml {workspace}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--update", action="store_true", help="rewrite the snapshot of the default rendering")
    update = arguments.parse_args().update
    all_failures = []

    def report(name, failures, fact):
        print(f"{'ok    ' if not failures.texts else 'FAILED'} {name}: {fact}")
        for text in failures.texts:
            print(f"         {text}")
        all_failures.extend(failures.texts)

    for name, (overlays, values, secrets) in VARIANTS.items():
        failures = Failures()
        status, manifest, complaint = render(overlays, values)
        failures.unless(status == 0, f"not rendered: {complaint.strip()}")
        objects = []
        if status == 0:
            objects = [item for item in yaml.safe_load_all(manifest) if item]
            kinds = check(objects, secrets, failures)
            if name == "default":
                check_snapshot(manifest, update, failures)
                check_version(failures)
            if name == "high availability":
                check_high_availability(kinds, failures)
        report(name, failures, f"{len(objects)} objects, Kubernetes {' and '.join(KUBERNETES)}")

    for values, reason in REFUSED:
        failures = Failures()
        status, _, complaint = render([], values)
        failures.unless(status == 1, "was rendered")
        failures.unless(reason in complaint, f"the reason does not name {reason!r}: {complaint.strip()}")
        report(f"refuses {json.dumps(values)}", failures, reason)

    print(f"chart: {len(VARIANTS)} renderings, {len(REFUSED)} refusals, {len(all_failures)} failures")
    return 1 if all_failures else 0


if __name__ == "__main__":
    sys.exit(main())
