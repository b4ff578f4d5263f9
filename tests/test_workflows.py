"""The workflow files are valid, and what they name is there: make targets, variables, files and results."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FILE = re.compile(r"(?<![\w./-])(?:[\w-]*\.?[\w-]+/)+[\w.-]+|(?<![\w./-])[\w-]+\.(?:toml|txt|yml)\b")
MADE = (".venv/", "runs/", "https:", "actions/")  # not in git


def steps(path):
    """Every step of a workflow, with the variables it sees."""
    workflow = yaml.safe_load(Path(path).read_text())
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            yield step, {**workflow.get("env", {}), **job.get("env", {}), **step.get("env", {})}


def missing(path):
    """What a workflow names and the repository lacks."""
    makefile = (ROOT / "Makefile").read_text()
    printed = ""
    for step, env in steps(path):
        words = step.get("run", "") + " " + str(step.get("with", {}).get("cache-dependency-path", ""))
        for file in FILE.findall(words):
            if not file.startswith(MADE) and not (ROOT / file).exists():
                yield f"file {file}"
        commands = step.get("run", "")
        commands = (ROOT / commands).read_text() if commands == ".ci/run" else commands
        for command in re.findall(r"^\s*make\b.*", commands, re.MULTILINE):
            for name in re.findall(r"\b([A-Z_]+)=", command):
                if not re.search(rf"^{name} \?=", makefile, re.MULTILINE):
                    yield f"variable {name} of make"
            for name in {name for name in re.findall(r"\$(\w+)", command) if name not in env}:
                yield f"variable {name} of the environment"
            made = subprocess.run(
                ["bash", "-c", command.replace("make", "make -n -o .venv/.installed", 1)],
                cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"} | {k: "x" for k in env},
            )  # fmt: skip
            printed += made.stdout
            if made.returncode:
                yield f"target of `{command.strip()}`: {made.stderr.strip()}"
        if "upload-artifact" in step.get("uses", "") and step["with"]["path"] not in printed:
            yield f"{step['with']['path']}, which no make command before it writes"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_names_is_there(path):
    assert list(missing(path)) == []


def test_all_workflows_fit_githubs_schema():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS]
    checked = subprocess.run(check, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    "old, new, complaint",
    [
        ("make workbook", "make wokbook", "target of `make wokbook`"),
        (".ci/run", ".ci/rum", "file .ci/rum"),
        ("constraints.txt\n", "constraint.txt\n", "file constraint.txt"),
        ("path: runs/workbook", "path: runs/wokbook", "runs/wokbook, which no make command"),
        ("make workbook", "make workbook SIZE=3", "variable SIZE of make"),
        ("make workbook", 'make workbook NOTEBOOKS="$WHICH"', "variable WHICH of the environment"),
    ],
)
def test_a_slip_is_found(tmp_path, old, new, complaint):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert old in text
    (tmp_path / "ci.yml").write_text(text.replace(old, new))
    assert any(complaint in found for found in missing(tmp_path / "ci.yml"))


def test_the_schema_finds_a_slip(tmp_path):
    text = WORKFLOWS[0].read_text()
    (tmp_path / "ci.yml").write_text(text.replace("runs-on:", "run-on:"))
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    assert subprocess.run([*check, tmp_path / "ci.yml"], capture_output=True).returncode == 1
