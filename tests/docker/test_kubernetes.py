"""The manifests in docker/kubernetes/, held to the schemas of Kubernetes, to each other and to docker/compose.yaml."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from enforcement.store.topology import Topology
from tests.docker.compose import load, read_dockerfile
from tests.docker.test_files import SECRETS
from tests.repository import ROOT

FOLDER = ROOT / "docker" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
VERSIONS = ("1.30", "1.37")
NAME = "app.kubernetes.io/name"

STORES = {path.name: path for path in (FOLDER / "stores").iterdir()}
# The ports of each kind of store, and whether the control plane has another server as its broker.
STORE_PORTS = {"server": ({6379}, False), "managed": ({6379, 6380}, False)}
STORE_PORTS |= {"sentinel": ({6379, 26379}, True), "cluster": ({6379}, True)}

Manifest = dict[str, Any]


def read(folder: Path) -> list[Manifest]:
    """Return all documents of the files that the kustomization in a folder names."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return [one for file in kustomization["resources"] for one in yaml.safe_load_all((folder / file).read_text())]


def manifests() -> list[Manifest]:
    """Return all documents that are applied as they come, with the store that is chosen."""
    return [
        one for folder in (FOLDER, *(FOLDER / name for name in KUSTOMIZATION["components"])) for one in read(folder)
    ]


def of_kind(*kinds: str) -> list[Manifest]:
    found = [one for one in manifests() if one["kind"] in kinds]
    assert found
    return found


def name_of(one: Manifest) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def chosen_by(selector: Manifest) -> set[str]:
    """Return the names of the pods that a selector finds."""
    chosen = {value for key, value in selector.get("matchLabels", selector).items() if key == NAME}
    for expression in selector.get("matchExpressions", []):
        assert (expression["key"], expression["operator"]) == (NAME, "In")
        chosen |= set(expression["values"])
    return chosen


WORKLOADS = of_kind("Deployment", "Job")
DEPLOYMENTS = {one["metadata"]["name"]: one for one in of_kind("Deployment")}


def pod_of(workload: Manifest) -> dict[str, Any]:
    return workload["spec"]["template"]["spec"]


def container_of(workload: Manifest) -> dict[str, Any]:
    (container,) = pod_of(workload)["containers"]
    return container


def test_every_file_is_applied() -> None:
    """A file that nobody names would be a manifest that nobody has."""
    for folder in (FOLDER, *STORES.values()):
        named = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
        assert {path.name for path in folder.glob("*.yaml")} == {*named, "kustomization.yaml"}


@pytest.mark.parametrize("one", manifests(), ids=name_of)
@pytest.mark.parametrize("version", VERSIONS)
def test_it_has_the_shape_that_kubernetes_asks_for(one: Manifest, version: str) -> None:
    """Strictly, so that a misspelt field is found too."""
    kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("store", STORE_PORTS)
def test_each_kind_of_store_can_be_chosen(store: str, version: str) -> None:
    """It lets all parts reach the ports of the store and nothing else, and has a scheme that the library knows."""
    ports, has_broker = STORE_PORTS[store]
    text = (STORES[store] / "kustomization.yaml").read_text()
    kustomization, policies = yaml.safe_load(text), read(STORES[store])
    for one in policies:
        kubernetes_validate.validate(one, version, strict=True)
        assert (one["kind"], one["spec"]["policyTypes"]) == ("NetworkPolicy", ["Egress"])
    by_name = {one["metadata"]["name"]: one["spec"] for one in policies}

    assert kustomization["kind"] == "Component"
    assert chosen_by(by_name["store"]["podSelector"]) == {*DEPLOYMENTS, "migrate"}
    assert {port["port"] for rule in by_name["store"]["egress"] for port in rule["ports"]} == ports
    assert ("broker" in by_name) is has_broker
    if has_broker:
        assert chosen_by(by_name["broker"]["podSelector"]) == {"web", "worker", "beat", "migrate"}
    address = text.splitlines()[0].partition("SLUICEGATE_REDIS_URL=")[2]
    assert address
    Topology.parse(address)


def test_only_the_chosen_store_is_reached() -> None:
    """No policy beside those of stores/ opens the port of a store, so that a narrower one is narrower."""
    opened = [
        port["port"]
        for one in read(FOLDER)
        if one["kind"] == "NetworkPolicy"
        for rule in one["spec"].get("egress", [])
        for port in rule["ports"]
    ]

    assert set(STORES) == set(STORE_PORTS)
    assert len(KUSTOMIZATION["components"]) == 1
    assert not {6379, 6380, 26379} & set(opened)


def test_control_a_misspelt_field_is_found() -> None:
    """The schemas are there, and they forbid what they do not know."""
    one = dict(of_kind("Service")[0])
    one["spec"] = one["spec"] | {"selectr": {}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(one, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("one", WORKLOADS, ids=name_of)
def test_a_pod_has_no_rights_that_it_does_not_need(one: Manifest) -> None:
    """No root, no writable image, no capability, no account of the cluster, no more memory than it says."""
    pod, container = pod_of(one), container_of(one)

    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("one", WORKLOADS, ids=name_of)
def test_secrets_are_named_and_never_written(one: Manifest) -> None:
    """Enforcers know the store by their own account, and neither the database nor the key of the sessions."""
    secrets = {source["secretRef"]["name"] for source in container_of(one)["envFrom"] if "secretRef" in source}
    header = (FOLDER / "kustomization.yaml").read_text()

    assert all(f"create secret generic {name} " in header for name in secrets)
    expected = {
        "decision-service": {"sluicegate-enforcer", "sluicegate-decision-service"},
        "proxy": {"sluicegate-enforcer"},
        "worker": {"sluicegate-control-plane", "sluicegate-worker"},
        "beat": {"sluicegate-control-plane", "sluicegate-worker"},
    }
    usual = {"sluicegate-control-plane", "sluicegate-publisher"}
    assert secrets == expected.get(one["metadata"]["name"], usual)
    written = [entry["name"] for entry in container_of(one).get("env", [])]
    assert not [name for name in written if re.search("PASSWORD|SECRET|KEY|URL", name) and "UPSTREAM" not in name]


def test_settings_are_those_of_the_documentation() -> None:
    """A name that nothing reads would be a setting that does nothing."""
    settings = (ROOT / "templates" / "docs" / "settings.md").read_text()
    literals = [literal for one in KUSTOMIZATION["configMapGenerator"] for literal in one["literals"]]

    assert literals
    assert [literal for literal in literals if f"`{literal.partition('=')[0]}`" not in settings] == []


def test_processes_are_started_as_elsewhere() -> None:
    """As the images and docker/compose.yaml start them, so that what is tried there holds here."""
    services = load(SECRETS)["services"]
    docker = ROOT / "docker"

    command = {name: container_of(one)["command"] for name, one in DEPLOYMENTS.items()}
    assert command["web"] == list(read_dockerfile(docker / "Dockerfile")[""].command)
    assert command["worker"] == services["worker"]["command"]
    assert command["beat"] == services["beat"]["command"]
    assert command["proxy"] == list(read_dockerfile(docker / "Dockerfile.proxy")["proxy"].command)
    (migrate,) = of_kind("Job")
    assert container_of(migrate)["command"] == services["migrate"]["command"]


def test_there_is_one_beat_at_any_time() -> None:
    """Two would send each task twice, also for the moment of an upgrade."""
    beat = DEPLOYMENTS["beat"]["spec"]

    assert (beat["replicas"], beat["strategy"]) == (1, {"type": "Recreate"})
    scaled = {one["spec"]["scaleTargetRef"]["name"] for one in of_kind("HorizontalPodAutoscaler")}
    assert scaled == set(DEPLOYMENTS) - {"beat"}
    assert [name for name in scaled if "replicas" in DEPLOYMENTS[name]["spec"]] == [], "two would decide the number"


def test_selectors_find_their_pods() -> None:
    """A service, a budget or a policy that selects nothing protects nothing, and says nothing."""
    labels = {one["spec"]["template"]["metadata"]["labels"][NAME] for one in WORKLOADS}
    for one in manifests():
        spec = one["spec"]
        chosen = chosen_by(spec.get("selector") or spec.get("podSelector") or {})
        assert chosen <= labels, name_of(one)
        assert chosen or one["kind"] in ("HorizontalPodAutoscaler", "Job") or one["metadata"]["name"] == "nothing"


def test_ports_are_those_on_which_processes_listen() -> None:
    """A service sends to the port by its name, a policy allows it by its number."""
    for name, one in DEPLOYMENTS.items():
        ports = [port["containerPort"] for port in container_of(one).get("ports", [])]
        said = re.findall(r"(?:--(?:metrics-)?port |0\.0\.0\.0:)(\d+)", " ".join(container_of(one)["command"]))
        assert [str(port) for port in ports] == said, name
    allowed = {
        port["port"]
        for policy in of_kind("NetworkPolicy")
        for rule in policy["spec"].get("ingress", [])
        for port in rule["ports"]
    }
    assert allowed == {8000, 8080, 9000, 9464}


def test_nothing_is_allowed_that_no_policy_names() -> None:
    """The policy for all pods allows nothing. No rule has an empty list of peers, which would mean everybody."""
    (nothing,) = [one for one in of_kind("NetworkPolicy") if one["metadata"]["name"] == "nothing"]

    assert nothing["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in of_kind("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            assert rule["from"], name_of(policy)


def test_the_decision_service_is_asked_by_those_that_are_named() -> None:
    """Any other pod could charge the token of another, and ask for each request that it likes."""
    rules = [
        rule
        for policy in of_kind("NetworkPolicy")
        for rule in policy["spec"].get("ingress", [])
        if "decision-service" in chosen_by(policy["spec"]["podSelector"])
    ]

    (selector,) = [peer["namespaceSelector"] for rule in rules for peer in rule["from"]]
    assert selector["matchExpressions"][0]["values"] == ["ingress-nginx", "monitoring"]
    assert [port["port"] for rule in rules for port in rule["ports"]] == [9000]


def test_a_pod_that_ends_has_time_to_finish() -> None:
    """Longer than it answers after the signal, and than a task or a stream may take to end."""
    grace = {name: pod_of(one)["terminationGracePeriodSeconds"] for name, one in DEPLOYMENTS.items()}
    serve = container_of(DEPLOYMENTS["decision-service"])["command"]

    assert grace["decision-service"] > int(serve[serve.index("--drain") + 1]) + 5
    for name in ("web", "proxy"):  # whose servers do not listen any more after the signal
        container = container_of(DEPLOYMENTS[name])
        pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert grace[name] > pause + 30, name
    assert f"{grace['worker']}s" == load(SECRETS)["services"]["worker"]["stop_grace_period"]


@pytest.mark.parametrize("name", ["decision-service", "proxy"])
def test_an_enforcer_keeps_its_state_when_its_container_is_restarted(name: str) -> None:
    """In an outage of the store it has no documents otherwise, and takes a second share."""
    (literals,) = [one["literals"] for one in KUSTOMIZATION["configMapGenerator"] if one["name"].endswith("enforcer")]
    (folder,) = [one.partition("=")[2] for one in literals if one.startswith("SLUICEGATE_STATE_DIR=")]
    mounts = {one["mountPath"]: one["name"] for one in container_of(DEPLOYMENTS[name])["volumeMounts"]}
    volumes = {one["name"]: one for one in pod_of(DEPLOYMENTS[name])["volumes"]}

    assert "emptyDir" in volumes[mounts[folder]]


def test_alerts_reach_no_credentials_of_a_cloud() -> None:
    """A receiver is anywhere, but not at the link-local addresses of a node."""
    (policy,) = [one for one in of_kind("NetworkPolicy") if one["metadata"]["name"] == "alerts-to-receivers"]
    (rule,) = policy["spec"]["egress"]

    assert {one["ipBlock"]["cidr"] for one in rule["to"]} == {"0.0.0.0/0", "::/0"}
    for address in ("169.254.169.254", "fd00:ec2::254", "fe80::1"):
        found = ip_address(address)
        refused = [ip_network(net) for one in rule["to"] for net in one["ipBlock"]["except"]]
        assert any(found in net for net in refused if net.version == found.version), address


def test_each_pod_that_resolves_names_may_do_so() -> None:
    """Also with the cache on the node, which is no pod."""
    allowed = [
        one["spec"]
        for one in of_kind("NetworkPolicy")
        if any(port["port"] == 53 for rule in one["spec"].get("egress", []) for port in rule["ports"])
    ]

    assert set().union(*(chosen_by(spec["podSelector"]) for spec in allowed)) == {*DEPLOYMENTS, "migrate"}
    for spec in allowed:
        (rule,) = [rule for rule in spec["egress"] if any(port["port"] == 53 for port in rule["ports"])]
        assert {port["protocol"] for port in rule["ports"]} == {"UDP", "TCP"}
        assert rule["to"] == [{"namespaceSelector": {}}, {"ipBlock": {"cidr": "169.254.20.10/32"}}]
