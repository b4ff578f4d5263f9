"""The package as a stranger has it: a wheel and an sdist, no checkout on any path, a notebook in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = {  # parameters with which a notebook ends in a minute
    "01_statistics": dict(n_prompts=4, n_seeds=2, steps=4),
    "02_disruption": dict(n_prompts=8, steps=4),
    "03_spatial_clustering": dict(),
    "04_transport": dict(),
    "05_origins": dict(live_steps=25),
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the wheel and the sdist; the wheel is built from the sdist, as an index would."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def stranger(dist, tmp_path_factory):
    """The interpreter of an environment with the wheel and every dependency, and without the checkout."""
    folder = tmp_path_factory.mktemp("stranger")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    (wheel,) = dist.glob("*.whl")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(command, check=True)
    return folder / "bin" / "python"


def run(python, folder, *words, **variables):
    """Run a command of the stranger's interpreter in a folder."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MASSACT_RUNS", "VIRTUAL_ENV")}
    environment |= {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run([str(python), *words], cwd=folder, env=environment, capture_output=True, text=True)


def test_wheel_and_sdist_are_small_and_hold_what_the_notebooks_need(dist):
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert wheel.stat().st_size < 40 * 2**20 and sdist.stat().st_size < 60 * 2**20  # notebooks and pages, too
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    rooms = ["data", "massact_utils", "training"]
    tracked = subprocess.run(["git", "ls-files", *rooms], cwd=ROOT, capture_output=True, text=True)
    assert set(tracked.stdout.split()) <= names


def test_the_installed_package_is_not_the_checkout(stranger, tmp_path):
    code = (
        "import sys, massact_utils as mu; places = mu.places\n"
        "print(places.PACKAGE, places.runs(), len(mu.prompts.read('toyworld', 4)))\n"
        "print(*sys.path, sep='\\n')"
    )
    done = run(stranger, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    package, runs, prompts = done.stdout.split()[:3]
    assert not Path(package).is_relative_to(ROOT) and Path(runs) == tmp_path / "runs" and prompts == "4"
    assert str(ROOT) not in done.stdout.splitlines()


def execute(stranger, folder, name):
    shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", folder)
    flags = [word for key, value in SMALL[name].items() for word in ("-p", key, str(value))]
    done = run(stranger, folder, "-m", "papermill", f"{name}.ipynb", "out.ipynb", "--no-progress-bar", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((folder / "runs" / name).rglob("claims.json")), "the results are not in ./runs"


def test_a_notebook_alone_in_a_folder(stranger, tmp_path):
    execute(stranger, tmp_path, "01_statistics")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if name != "01_statistics"])
def test_every_notebook_alone_in_a_folder(stranger, tmp_path, name):
    execute(stranger, tmp_path, name)


def test_from_the_root_of_the_file_system_the_remedy_is_told(stranger):
    done = run(stranger, "/", "-c", "import massact_utils as mu; mu.results.folder('', '01_statistics', {})")
    assert done.returncode == 1 and "start from a folder of your own, name out_dir, or set MASSACT_RUNS" in done.stderr


def test_a_folder_that_cannot_be_made_is_told(stranger, tmp_path):
    (tmp_path / "runs").write_text("a file in its place")
    done = run(stranger, tmp_path, "-c", "import massact_utils as mu; mu.results.folder('', '01_statistics', {})")
    assert done.returncode == 1 and f"{tmp_path}/runs/01_statistics" in done.stderr
    assert "name another out_dir, or set MASSACT_RUNS" in done.stderr


def test_a_damaged_model_is_named(tmp_path):
    import massact_utils as mu

    folder = shutil.copytree(mu.places.data("toy", "klein"), tmp_path / "klein")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(OSError, match=r"klein/transformer/diffusion_pytorch_model\.safetensors"):
        mu.load(str(folder))
