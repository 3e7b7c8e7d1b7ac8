"""The Dockerfile and the job for Kubernetes, as far as they can be checked without Docker and a cluster."""

import configparser
import re
import shlex

import pytest
import yaml
from launching import ROOT

from effv2_jax.cli.parser import make_parser
from effv2_jax.errors import EXIT_MISTAKE, EXIT_PREEMPTED
from effv2_jax.runtime.processes import ADVICE

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
ALLOWED = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]


def test_all_that_is_copied_is_there_and_let_through():
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE)]
    sources = [source for words in copied for source in words]
    assert "setup.cfg" in sources and "effv2_jax" in sources
    for source in sources:
        assert (ROOT / source).exists() and source.split("/")[0] in ALLOWED, source
    assert {source.split("/")[0] for source in sources} == set(ALLOWED)
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_extras_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = [found.split(",") for found in re.findall(r"extra='\[([\w,]+)\]'", DOCKERFILE)]
    assert extras == [["gcs"], ["cuda12", "gcs"], ["tpu"]]
    assert {name for names in extras for name in names} < set(setup["options.extras_require"])


def test_the_image_runs_without_rights_of_root():
    assert DOCKERFILE.rindex("\nUSER effv2\n") > DOCKERFILE.rindex("\nRUN ")
    assert re.search(r'^ENTRYPOINT \["effv2"\]$', DOCKERFILE, re.MULTILINE)


def test_whoever_runs_it_may_write_where_it_is_told_to():
    lines = DOCKERFILE.splitlines()
    made = lines.index("#   mkdir -p runs")
    words = shlex.split(lines[made + 1].removeprefix("#"))
    assert words[:2] == ["docker", "run"]
    assert {"--user=$(id -u):$(id -g)", "--volume=$PWD/runs:/effv2_jax/runs"} < set(words)
    assert DOCKERFILE.index("\nENV HOME=/tmp\n") < DOCKERFILE.index("\nUSER effv2\n")


@pytest.fixture(scope="module")
def job():
    service, job = yaml.safe_load_all((ROOT / "scripts" / "gke_job.yaml").read_text())
    assert service["spec"]["clusterIP"] == "None"  # so that each pod has a name
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    return job["spec"]


def test_the_pods_fill_the_slice(job):
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    assert chips == eval(shape.replace("x", "*"))
    coordinator = re.search(r"JAX takes (\d+)", ADVICE)[1]
    assert int(coordinator) in [port["containerPort"] for port in container["ports"]]


def test_exit_codes_decide_what_starts_again(job):
    rules = {
        value: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for value in rule.get("onExitCodes", {"values": ["disruption"]})["values"]
    }
    assert rules == {EXIT_MISTAKE: "FailJob", EXIT_PREEMPTED: "Ignore", "disruption": "Ignore"}
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which a podFailurePolicy needs


def test_the_command_is_one_of_ours(job):
    (container,) = job["template"]["spec"]["containers"]
    words = [word for word in container["args"] if not word.startswith("--config.")]
    parsed = make_parser().parse_args(words)
    assert parsed.verb == "train" and parsed.distributed and parsed.workdir.startswith("gs://")
    example = next(line for line in DOCKERFILE.splitlines() if "docker run" in line)
    words = shlex.split(example.partition("effv2_jax:gpu ")[2])
    assert make_parser().parse_args(words).workdir == "runs/digits"
