"""The files around the code agree with each other."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = PROJECT["urls"]["Repository"]
REPO = ADDRESS.removeprefix("https://github.com/")
EXTRAS = PROJECT["optional-dependencies"]
RANGES = [Requirement(line) for line in PROJECT["dependencies"] + EXTRAS["test"] + EXTRAS["batch"]]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def conda(path):
    """Conda dependencies as {name: version}, and the list given to pip."""
    *packages, last = yaml.safe_load((ROOT / path).read_text())["dependencies"]
    return dict(re.fullmatch(r"([\w-]+)(.*)", package).groups() for package in packages), last["pip"]


@pytest.mark.parametrize("requirement", RANGES, ids=lambda requirement: requirement.name)
def test_pins_lie_in_the_ranges(requirement):
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_binder_is_the_root_environment_on_a_cpu():
    (root, root_pip), (binder, binder_pip) = conda("environment.yml"), conda("binder/environment.yml")
    torch = next(requirement for requirement in RANGES if requirement.name == "torch")
    assert root.pop("pytorch") == binder.pop("pytorch-cpu") == str(torch.specifier)
    assert root == binder
    assert "pip" in root and PROJECT["requires-python"] == ">=3.11" and root["python"] >= "=3.11"
    assert (root_pip, binder_pip) == (["-e ."], ["-e .."])  # pip runs beside the file


@pytest.mark.slow
def test_binder_builds_from_its_folder():
    """repo2docker, which is what Binder runs, reads the files and writes the Dockerfile; nothing is built."""
    pytest.importorskip("repo2docker", reason="needs repo2docker: pip install 'massact[test]'")
    flags = ["--no-build", "--debug", "--user-id", "1000", "--user-name", "jovyan"]
    made = subprocess.run([sys.executable, "-m", "repo2docker", *flags, str(ROOT)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    python = conda("binder/environment.yml")[0]["python"].strip("=")
    for line in ('--file "binder/environment.yml"', "RUN ./binder/postBuild", f"for python={python}"):
        assert line in made.stdout + made.stderr, f"repo2docker says nothing of {line}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_opens_itself_in_binder_and_colab(path):
    text, file = path.read_text(), f"notebooks/{path.name}"
    assert re.findall(r"mybinder\.org/v2/gh/([^)\s]+)\)", text) == [f"{REPO}/HEAD?urlpath=lab/tree/{file}"]
    assert re.findall(r"colab\.research\.google\.com/github/([^)\s]+)\)", text) == [f"{REPO}/blob/main/{file}"]


def test_the_address_of_the_repository_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == ADDRESS
    for path in ROOT.glob("notebooks/*.ipynb"):
        assert re.findall(r"git\+(https://\S+?)[\"\\]", path.read_text()) == [ADDRESS]
    pages = "".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("site/*.md"), *ROOT.glob("docs/*.md")])
    assert set(re.findall(r"github\.com/([\w-]+/massact)\b", pages)) == {REPO}


def test_the_other_pages_open_notebooks_that_are_there():
    text = "".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("site/*.md")])
    for file in re.findall(rf"{REPO}/(?:HEAD\?urlpath=lab/tree|blob/main)/([^)\s]+)\)", text):
        assert (ROOT / file).is_file(), f"no {file}"


def test_never_torchvision():
    """It has no CPU build; its mere presence breaks diffusers there."""
    assert "torchvision" not in pins()
    assert "torchvision" not in {requirement.name for requirement in RANGES}


@pytest.mark.parametrize("script", [".ci/run", "binder/postBuild"])
def test_scripts_are_executable(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_ci_runs_the_readmes_commands():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    for command in ("make workbook", "make test"):
        assert re.search(rf"^(\$ )?{command}\b", readme, re.MULTILINE), f"README.md has no line `{command}`"
    assert re.search(r"^make test\b", ci, re.MULTILINE)
    assert ".ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()


def test_make_has_the_targets_it_lists():
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^make (\w+)", listed, re.MULTILINE)
    assert {"workbook", "test", "lint", "notebooks"} <= set(targets)
    rules = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(targets) <= set(rules)


def test_make_leaves_out_what_pip_says_of_itself():
    noise = [
        "WARNING: Location 'file:///opt' is ignored:",
        "[notice] A new release",
        "Collecting a",
    ]
    kept = ["  Downloading a.whl (2 MB)", "WARNING: a 1.0 is yanked", "ERROR: No matching distribution found for b"]
    command = ["make", "-s", "--eval", "said: ; @cat | $(QUIETER)", "said"]
    done = subprocess.run(command, cwd=ROOT, input="\n".join([*noise, *kept]) + "\n", capture_output=True, text=True)
    assert done.stdout.splitlines() == kept


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/bash\npython3 -c \"import sys; sys.version_info = (3, 9); sys.version = '3.9.2'; $2\"\n")
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    made = subprocess.run(["make", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 2 and "needs Python 3.11 or newer" in made.stderr and "3.9.2" in made.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2605.13974"
    assert [author["family-names"] for author in paper["authors"]] == "Turri Bucciarelli Sarto Baraldi Cornia".split()
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()
