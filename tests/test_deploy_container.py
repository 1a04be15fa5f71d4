"""The image, compose.yaml and the manifests for Kubernetes, judged by other people's tools and by rules of our own."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer import settings
from streamer.places import CONFIG_VARIABLE, SECRETS_VARIABLE, variable
from tests.conftest import skip_absent
from tests.servers import program

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE = DEPLOY / "compose.yaml"
OPERATOR = ROOT / "tests" / "kubernetes"
VARIABLES = {variable(setting.name) for setting in settings.reference()} | {CONFIG_VARIABLE, SECRETS_VARIABLE}
KUBERNETES = ("1.29", "1.33", "1.37")


def installed(name: str) -> str:
    """A program of the virtual environment."""
    return str(Path(sys.executable).parent / name)


def run(*command: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


# --- The image ---


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile without its comments, a line for each instruction."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    """And it would: of a root user, for one."""
    done = run(installed("hadolint"), DOCKERFILE)
    assert done.returncode == 0, done.stdout + done.stderr
    worse = tmp_path / "Dockerfile"
    worse.write_text(DOCKERFILE.read_text().replace("USER 10001:0", "USER root"))
    assert "DL3002" in run(installed("hadolint"), worse).stdout


def test_the_image_says_what_the_project_says() -> None:
    """Its version, and no variable that is no setting."""
    text = DOCKERFILE.read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f'image.version="{project["version"]}"' in text
    assert f'image.licenses="{project["license"]}"' in text
    assert set(re.findall(r"\bSTREAMER_\w+", text)) <= VARIABLES


def test_what_an_image_is_made_of_is_what_the_context_has() -> None:
    """What is copied is not ignored, and nothing else comes along."""
    *_, (_, default) = [each for each in enumerate(instructions()) if each[1][0] == "FROM"]
    assert default == ("FROM", "${PYTHON_IMAGE}")
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]
    wanted = {source for sources in copied for source in sources}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == wanted
    assert all((ROOT / source).exists() for source in wanted)


@pytest.mark.parametrize("build", ["any", "cpu", "cuda", "none"])
def test_the_image_gets_what_the_project_asks_for(build: str) -> None:
    """The same dependencies, with torch's build for the CPU by its own name where that is wanted."""
    done = subprocess.run(
        [sys.executable, DEPLOY / "docker/requirements.py", build], cwd=ROOT, capture_output=True, text=True, check=True
    )
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (pin,) = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    torch = {"cpu": [f"{pin}+cpu"], "none": []}
    expected = [each for line in asked for each in (torch.get(build, [line]) if line.startswith("torch") else [line])]
    assert len(expected) == len(asked) - (build == "none")
    assert done.stdout.splitlines() == expected


@pytest.mark.slow
def test_another_build_of_torch_is_refused() -> None:
    """A word that is none, and an index that has given another build than was asked for."""
    script = str(DEPLOY / "docker/requirements.py")
    done = subprocess.run([sys.executable, script, "gpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    import torch

    right, wrong = ("cpu", "cuda") if torch.version.cuda is None else ("cuda", "cpu")
    check = [sys.executable, script, "--check"]
    assert subprocess.run([*check, right], capture_output=True, check=False).returncode == 0
    assert b"docs/container.md" in subprocess.run([*check, wrong], capture_output=True, check=False).stderr


# --- compose.yaml ---


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


SERVICES = compose()["services"]


def test_docker_compose_reads_it(tmp_path: Path) -> None:
    """Docker's own program, by the schema of the Compose Specification; a word that it does not know is found."""
    done = run(installed("docker-compose"), "--file", COMPOSE, "config", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    worse = tmp_path / "compose.yaml"
    worse.write_text(COMPOSE.read_text().replace("    mem_limit: 1500m", "    memlimit: 1500m"))
    assert "memlimit" in run(installed("docker-compose"), "--file", worse, "config", "--quiet").stderr


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_has_no_more_than_it_needs(name: str) -> None:
    """No rights, a read-only root, limits on memory, processes and log, a fixed version, ports on loopback only."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert {"mem_limit", "pids_limit"} <= service.keys()
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert name == "streamer" or re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "privileged" not in service
    assert name == "passwords" or "healthcheck" in service
    assert name in ("passwords", "streamer") or "cpus" in service


def test_the_files_and_volumes_that_compose_names_are_there() -> None:
    """Each file is ours and read-only; each volume is declared, and all are used."""
    volumes = set()
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source, *_, last = mount.split(":")
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
                assert last == "ro"
            else:
                volumes.add(source)
    assert volumes == compose()["volumes"].keys()
    assert (DEPLOY / "docker/pip.conf").exists()


def test_no_password_is_in_compose_and_each_service_sees_its_own() -> None:
    """They are made at the first start; variables name settings, and say no secret."""
    environment = {
        name: value for service in SERVICES.values() for name, value in service.get("environment", {}).items()
    }
    assert {name for name in environment if name.startswith("STREAMER_")} <= VARIABLES
    secret = {name for name in environment if re.search("PASS|SECRET|TOKEN|KEY", name)}
    assert secret == {"GF_SECURITY_ADMIN_PASSWORD__FILE"}
    holders = {mount.split(":")[0]: name for name, service in SERVICES.items() for mount in service.get("volumes", [])}
    assert holders["passwords"] == "passwords"
    assert {name: holder for name, holder in holders.items() if name.endswith("-secrets")} == {
        "broker-secrets": "mosquitto",
        "streamer-secrets": "streamer",
        "grafana-secrets": "grafana",
    }


@pytest.mark.server("promtool")
def test_composes_prometheus_has_the_shipped_rules(tmp_path: Path) -> None:
    """The same files under the same job, and promtool takes them."""
    own = yaml.safe_load((DEPLOY / "compose/prometheus.yml").read_text())
    shipped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert own["rule_files"] == shipped["rule_files"]
    assert [job["job_name"] for job in own["scrape_configs"]] == [job["job_name"] for job in shipped["scrape_configs"]]
    for path in ("compose/prometheus.yml", *(f"prometheus/{name}" for name in own["rule_files"])):
        shutil.copy(DEPLOY / path, tmp_path)
    done = run(program("promtool"), "check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_composes_grafana_has_the_shipped_data_source() -> None:
    """But for the address."""
    own, shipped = (
        yaml.safe_load((DEPLOY / path).read_text())
        for path in ("compose/grafana.yml", "grafana/provisioning/datasources/prometheus.yml")
    )
    assert own["datasources"][0].pop("url") == "http://prometheus:9090"
    shipped["datasources"][0].pop("url")
    assert own == shipped


@pytest.mark.server("mosquitto", "mosquitto_passwd")
def test_composes_broker_is_the_shipped_one(tmp_path: Path) -> None:
    """Four lines of mosquitto.conf say where things are in a container; the rest, and the access list, stay."""
    folders = {"/etc/streamer": DEPLOY / "mosquitto", "/tmp": tmp_path}  # noqa: S108  in a container
    script = (DEPLOY / "compose/broker.sh").read_text().replace("exec mosquitto", "true")
    # In one go, since the checkout itself may lie below /tmp.
    script = re.sub(r"(?<!acl_file) (/etc/streamer|/tmp)(?=/)", lambda found: f" {folders[found[1]]}", script)
    done = run("sh", text=script)
    assert (done.returncode, done.stderr) == (0, "")
    shipped, made = ((folder / "mosquitto.conf").read_text().splitlines() for folder in folders.values())
    changed = [line for line, was in zip(made, shipped, strict=True) if line != was]
    assert changed == [
        "persistence_location /mosquitto/data/",
        "password_file /secrets/passwords",
        "acl_file /tmp/acl",
        "listener 1883",
    ]
    shipped_acl = (DEPLOY / "mosquitto/acl").read_text()
    assert (tmp_path / "acl").read_text() == shipped_acl + "\nuser health\ntopic read $SYS/broker/uptime\n"


@pytest.mark.server("mosquitto_passwd")
def test_passwords_are_made_once_and_handed_to_each(tmp_path: Path) -> None:
    """A second start changes none; the broker has hashes, one for each user of the access list."""
    for name in ("passwords", "for/broker", "for/streamer", "for/grafana"):
        (tmp_path / name).mkdir(parents=True)
    script = re.sub(r"(?<=[ \"])/(?=passwords|for)", f"{tmp_path}/", (DEPLOY / "compose/passwords.sh").read_text())
    script = f"TMPDIR={tmp_path}\n{script.replace('mosquitto_passwd', program('mosquitto_passwd'))}"

    def passwords() -> dict[str, str]:
        done = run("sh", text=script)
        assert (done.returncode, done.stderr) == (0, "")
        return {path.name: path.read_text() for path in (tmp_path / "passwords").iterdir()}

    made = passwords()
    assert passwords() == made
    assert len(set(made.values())) == len(made) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9+/]{24}\n", password) for password in made.values())
    assert (tmp_path / "for/streamer/mqtt.password").read_text() == made["streamer"]
    hashed = (tmp_path / "for/broker/passwords").read_text()
    users = re.findall(r"^user (\w+)", (DEPLOY / "mosquitto/acl").read_text(), re.MULTILINE)
    assert {line.split(":")[0] for line in hashed.splitlines()} == {*users, "health"}
    assert not any(password.strip() in hashed for password in made.values())
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o640}


# --- Kubernetes ---


def rendered(*, operator: bool = False) -> list[dict[str, Any]]:
    """What `kubectl apply --kustomize` would apply; with the ServiceMonitor, where there is an operator."""
    folder = DEPLOY / "kubernetes"
    if not operator:
        done = run(program("kubectl"), "kustomize", folder)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))
    return [*rendered(), yaml.safe_load((folder / "servicemonitor.yaml").read_text())]


def of_kind(kind: str, *, operator: bool = False) -> dict[str, Any]:
    (found,) = [each for each in rendered(operator=operator) if each["kind"] == kind]
    return found


@pytest.mark.server("kubectl")
@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_fit_kubernetes_schemas(version: str, tmp_path: Path) -> None:
    """Of three versions, strictly: a name that there is not is found."""
    manifests = rendered()

    def judge() -> tuple[int, str]:
        files = []
        for manifest in manifests:
            files.append(tmp_path / f"{manifest['kind']}.yaml")
            files[-1].write_text(yaml.safe_dump(manifest))
        done = run(installed("kubernetes-validate"), "--strict", "-k", version, *files)
        return done.returncode, done.stdout + done.stderr

    status, text = judge()
    assert status == 0, text
    assert text.count(" passed ") == len(manifests) == 4
    (stateful,) = [each for each in manifests if each["kind"] == "StatefulSet"]
    pod = stateful["spec"]["template"]["spec"]
    pod["enableServiceLink"] = pod.pop("enableServiceLinks")
    status, text = judge()
    assert status != 0
    assert "enableServiceLink" in text


VOLUMES = {"name", "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"} | {
    "secret"
}


def violations(pod: dict[str, Any]) -> set[str]:
    """Which rules of the Pod Security Standard `restricted`, with those of `baseline`, a pod breaks."""
    broken = {name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)}
    general = pod.get("securityContext", {})
    if general.get("sysctls"):
        broken.add("sysctls")
    if any(set(volume) - VOLUMES for volume in pod.get("volumes", [])):
        broken.add("volumes")
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        own = container.get("securityContext", {})
        both = general | own
        capabilities = own.get("capabilities", {})
        rules = {
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
            "privileged": not own.get("privileged"),
            "procMount": own.get("procMount", "Default") == "Default",
            "options": not {"seLinuxOptions", "appArmorProfile", "windowsOptions"} & both.keys(),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": both.get("runAsUser") != 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "capabilities": capabilities.get("drop") == ["ALL"]
            and set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        }
        broken |= {name for name, is_kept in rules.items() if not is_kept}
    return broken


def worse(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Callable[[dict[str, Any]], set[str]]:
    """What a pod breaks once it and its container's security context are changed."""

    def changed(pod: dict[str, Any]) -> set[str]:
        other = copy.deepcopy(pod)
        change(other, other["containers"][0]["securityContext"])
        return violations(other)

    return changed


WORSE = {
    "hostNetwork": worse(lambda pod, _: pod.update(hostNetwork=True)),
    "volumes": worse(lambda pod, _: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    "runAsNonRoot": worse(lambda pod, _: pod["securityContext"].pop("runAsNonRoot")),
    "runAsUser": worse(lambda _, own: own.update(runAsUser=0)),
    "seccompProfile": worse(lambda pod, _: pod["securityContext"].pop("seccompProfile")),
    "privileged": worse(lambda _, own: own.update(privileged=True)),
    "allowPrivilegeEscalation": worse(lambda _, own: own.pop("allowPrivilegeEscalation")),
    "capabilities": worse(lambda _, own: own["capabilities"].update(add=["NET_RAW"])),
}


@pytest.mark.server("kubectl")
def test_the_pod_is_of_the_restricted_kind() -> None:
    """A namespace that enforces `restricted` takes it; the root of its files is read-only besides."""
    pod = of_kind("StatefulSet")["spec"]["template"]["spec"]
    assert violations(pod) == set()
    assert {name: changed(pod) for name, changed in WORSE.items()} == {name: {name} for name in WORSE}
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.server("kubectl")
def test_the_manifests_belong_together() -> None:
    """Labels, ports, volumes and the settings' file, and the user and the places of the image."""
    stateful, service, policy = of_kind("StatefulSet")["spec"], of_kind("Service"), of_kind("NetworkPolicy")["spec"]
    monitor, settings_map = of_kind("ServiceMonitor", operator=True)["spec"], of_kind("ConfigMap")
    labels, pod = stateful["template"]["metadata"]["labels"], stateful["template"]["spec"]
    assert stateful["replicas"] == 1
    assert stateful["serviceName"] == service["metadata"]["name"]
    selectors = (stateful["selector"], monitor["selector"], policy["podSelector"])
    assert all(each["matchLabels"] == labels for each in selectors)
    assert service["spec"]["selector"] == labels == service["metadata"]["labels"]

    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == settings.Settings().http.port
    (offered,) = service["spec"]["ports"]
    (scraped,) = monitor["endpoints"]
    (let_in,) = policy["ingress"][0]["ports"]
    probes = [container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {probe["path"] for probe in probes} == {"/-/healthy", "/-/ready"}
    named = {
        offered["targetPort"],
        offered["name"],
        scraped["port"],
        let_in["port"],
        *(probe["port"] for probe in probes),
    }
    assert named == {port["name"]}

    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claims = {claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == volumes.keys() | claims
    assert volumes["settings"]["configMap"]["name"] == settings_map["metadata"]["name"]
    (text,) = settings_map["data"].values()
    tables = tomllib.loads(text)
    assert {f"{table}.{name}" for table, found in tables.items() for name in found} == {"mqtt.host", "mqtt.username"}

    dockerfile = DOCKERFILE.read_text()
    assert f"USER {pod['securityContext']['runAsUser']}:" in dockerfile
    assert f"{CONFIG_VARIABLE}={mounts['settings']}/{next(iter(settings_map['data']))}" in dockerfile
    assert f"{SECRETS_VARIABLE}={mounts['secrets']} " in dockerfile
    assert f"{variable('state.directory')}={mounts['state']} " in dockerfile
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container["image"] == f"streamer:{version}"


@pytest.mark.slow
def test_the_service_monitor_is_one_of_the_operators() -> None:
    """By the schema of the operator's own definition; an interval that is none is found."""
    if shutil.which("node") is None or not (OPERATOR / "node_modules").is_dir():
        skip_absent("@kubernetes-models/prometheus-operator", "npm ci --prefix tests/kubernetes")
    text = json.dumps(yaml.safe_load((DEPLOY / "kubernetes/servicemonitor.yaml").read_text()))
    for wanted, given in ((True, text), (False, text.replace('"15s"', '"15 seconds"'))):
        done = run("node", OPERATOR / "validate.js", text=given)
        assert (done.returncode == 0) == wanted, done.stderr
    assert fnmatch(done.stderr, "*ValidationError*interval*")
