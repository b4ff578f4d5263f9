"""Run: whole batches, each once; a folder belongs to one set of parameters, one model and one list of prompts."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file

import massact_utils as mu
import tiny
from massact_utils import places
from massact_utils.models import progress
from massact_utils.results import files, provenance

PROMPTS = [f"prompt {i}" for i in range(10)]


def table(batch):
    return pd.DataFrame({"at": batch.indices, "prompt": batch.prompts, "seed": batch.seeds})


def fill(run, prompts=PROMPTS, size=4, **more):
    done = []
    for batch in run.pending(prompts, size, **more):
        run.add(batch, table(batch))
        done.append(batch.index)
    return done


def test_every_prompt_once_and_in_order(tmp_path):
    run = mu.Run(tmp_path, {"k": 4, "seed": 100})
    assert fill(run) == [0, 1, 2]
    found = run.results()
    assert found["at"].tolist() == list(range(10)) and found["prompt"].tolist() == PROMPTS
    assert found["seed"].tolist() == list(range(100, 110))
    assert not [
        path.name for path in run.parts.iterdir() if path.suffix not in (".parquet", ".sha256")
    ]  # no locks, nothing unfinished


def test_a_run_goes_on_where_it_stopped(tmp_path):
    run = mu.Run(tmp_path, {"k": 4})
    with pytest.raises(ZeroDivisionError):
        for batch in run.pending(PROMPTS, 4):
            if batch.index == 1:
                raise ZeroDivisionError
            run.add(batch, table(batch))
    assert fill(run) == [1, 2]
    assert run.results()["at"].tolist() == list(range(10))


def test_a_batch_that_is_not_added_stays_pending(tmp_path):
    run = mu.Run(tmp_path, {})
    assert [batch.index for batch in run.pending(PROMPTS, 4)] == [0, 1, 2]
    left = next(iter(run.pending(PROMPTS, 4)))  # claimed in this very process, and left
    assert left.index == 0 and fill(run) == [0, 1, 2]


def test_loops_of_their_own_names(tmp_path):
    run = mu.Run(tmp_path, {})
    assert fill(run, name="choice", size=5) == [0, 1] and fill(run) == [0, 1, 2]
    assert len(run.results("choice")) == 10
    with pytest.raises(LookupError, match=r"no results called 'dose'"):
        run.results("dose")


def test_names_of_loops_do_not_run_into_each_other(tmp_path):
    run = mu.Run(tmp_path, {})
    fill(run, name="part-two"), fill(run, PROMPTS[:2])
    assert len(run.results()) == 2 and len(run.results("part-two")) == 10
    with pytest.raises(ValueError, match=r"'a/b' of a loop becomes part of file names"):
        run.pending(PROMPTS, name="a/b")


def test_pairs_come_as_they_were_given(tmp_path):
    run = mu.Run(tmp_path, {})
    frame = pd.DataFrame({"source": ["a", "b"], "target": ["c", "d"]})
    (batch,) = run.pending(frame)
    assert batch.prompts == [{"source": "a", "target": "c"}, {"source": "b", "target": "d"}]
    (batch,) = run.pending(zip("ab", "cd", strict=True), name="tuples")
    assert batch.prompts == [("a", "c"), ("b", "d")]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: mu.Run(path, {"k": 5, "seed": 0}), r"k = 4 there, 5 here. Name another out_dir, or remove"),
        (lambda path: mu.Run(path, {"k": 4, "seed": 0, "new": 1}), r"new = '\(none\)' there, 1 here"),
        (lambda path: mu.Run(path, {"k": 4}), r"seed = 0 there, '\(none\)' here"),
        (lambda path: fill(mu.Run(path, {"k": 4, "seed": 0}), PROMPTS[:9]), r"prompts = 10 there, 9 here"),
        (lambda path: fill(mu.Run(path, {"k": 4, "seed": 0}), [*PROMPTS[:9], "x"]), r"of content = .* there, .* here"),
        (lambda path: fill(mu.Run(path, {"k": 4, "seed": 0}), size=2), r"in batches of = 4 there, 2 here"),
    ],
)
def test_a_folder_with_other_results_is_refused(tmp_path, change, message):
    fill(mu.Run(tmp_path, {"k": 4, "seed": 0}))
    with pytest.raises(ValueError, match=message):
        change(tmp_path)
    fill(mu.Run(tmp_path, {"k": 4, "seed": 0, "out_dir": "elsewhere"}))  # this changes no result


def test_another_model_in_the_same_place_is_refused(klein, tmp_path):
    folder = tmp_path / "secret" / "mine"
    klein.save_pretrained(folder)
    parameters = {"model": str(folder)}
    mu.Run(tmp_path / "out", parameters, pipe=mu.load(folder, device="cpu"))
    mu.Run(tmp_path / "out", parameters, pipe=mu.load(folder, device="cpu"))
    mu.Run(tmp_path / "out", parameters)  # only to draw
    with pytest.raises(ValueError, match=r"dtype = 'float32' there, 'bfloat16' here"):
        mu.Run(tmp_path / "out", parameters, pipe=mu.load(folder, device="cpu", dtype="bfloat16"))
    default = mu.results.folder("", "x", parameters)
    pipe = mu.load(folder, device="cpu")
    with torch.no_grad():
        next(pipe.transformer.parameters()).add_(1)
    pipe.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"model = 'mine-.*' there, 'mine-.*' here"):
        mu.Run(tmp_path / "out", parameters, pipe=mu.load(folder, device="cpu"))
    assert mu.results.folder("", "x", parameters) != default
    written = (tmp_path / "out" / "provenance.json").read_text() + (tmp_path / "out" / "parameters.json").read_text()
    assert str(tmp_path) not in written and "secret" not in written


def test_other_versions_are_told_and_not_refused(tmp_path, monkeypatch):
    mu.Run(tmp_path, {})
    monkeypatch.setattr(provenance.platform, "python_version", lambda: "3.99")
    with pytest.warns(UserWarning, match=r"begun otherwise: python = '3.1.*' there, '3.99' here"):
        mu.Run(tmp_path, {})


def test_provenance_says_where_results_come_from(tmp_path):
    run = mu.Run(tmp_path, {"seed": 3, "model": "some/model"}, pipe=tiny.klein())
    fill(run)
    found = json.loads((tmp_path / "provenance.json").read_text())
    assert torch.__version__.startswith(found["libraries"]["torch"]) and found["libraries"]["massact"]  # 2.11.0+cu130
    model = {"name": "some/model", "class": "Flux2KleinPipeline", "revision": "unknown", "adapters": {}}
    assert {name: found["model"][name] for name in model} == model
    assert set(found["model"]["in memory"]) == {"vae", "text_encoder", "transformer"}
    assert (found["device"], found["dtype"], found["seed"]) == ("cpu", "float32", 3)
    assert found["prompts"]["part"]["of content"] == provenance.digest(PROMPTS)


def test_a_hub_models_revision_is_the_commit_it_resolved_to(monkeypatch):
    commit, klein = "0123456789" * 4, tiny.klein()
    monkeypatch.setattr(klein.text_encoder.config, "_name_or_path", f"/home/me/hub/models--a--b/snapshots/{commit}/t")
    assert provenance.of({"model": "a/b"}, klein)["model"]["revision"] == commit


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:200] + b"?" + b[201:]])
def test_a_part_that_is_not_what_was_written_is_set_aside_and_redone(tmp_path, spoil):
    run = mu.Run(tmp_path, {})
    fill(run)
    before, part = run.results(), run.parts / "part-00001.parquet"
    part.write_bytes(spoil(part.read_bytes()))
    with pytest.warns(UserWarning, match=r"part-00001.parquet is not what was written; set aside as .*unreadable"):
        assert fill(run) == [1]
    assert (run.parts / "part-00001.parquet.unreadable").exists()
    pd.testing.assert_frame_equal(run.results(), before)


def dataset(batch):
    values = np.arange(len(batch) * 6, dtype=np.float32).reshape(len(batch), 2, 3) + 100 * batch.index
    names = xr.DataArray(["a", "b"], dims="layer")
    kept = {"mean": (("image", "layer", "channel"), values), "bits": (("image", "layer", "channel"), values > 3)}
    half, byte = values.astype(np.float16), np.full(values.shape, 200, np.uint8)
    kept |= {"half": (("image", "layer", "channel"), half), "byte": (("image", "layer", "channel"), byte)}
    return xr.Dataset(kept, {"name": names, "layer": [0, 5], "step": 7}, attrs={"about": "a test"})


def test_datasets_are_joined_along_images(tmp_path):
    run = mu.Run(tmp_path, {})
    for batch in run.pending(PROMPTS, 4):
        run.add(batch, dataset(batch))
    found = run.results()
    assert found.image.values.tolist() == list(range(10)) and found.name.dims == ("layer",)
    assert found.name.values.tolist() == ["a", "b"] and found.step.item() == 7 and found.bits.dtype == bool
    batches = [b for b in run.pending(PROMPTS, 4, name="again")]
    expected = xr.concat([dataset(batch) for batch in batches], "image")
    for name in ("mean", "bits", "half", "byte"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_what_cannot_be_a_part_is_refused(tmp_path):
    run = mu.Run(tmp_path, {})
    batch = next(run.pending(PROMPTS))
    with pytest.raises(ValueError, match=r"kept along its dim 'image', and this has only layer"):
        run.add(batch, xr.Dataset({"a": ("layer", [1, 2])}))
    with pytest.raises(TypeError, match=r"a DataFrame or a Dataset, not list"):
        run.add(batch, [1, 2])


def test_without_a_common_disk_every_process_takes_its_share_and_the_copied_parts_are_one(tmp_path, monkeypatch):
    for i in (3, 1, 2):
        monkeypatch.setenv("MASSACT_BATCHES", f"{i}/3")
        run = mu.Run(tmp_path / str(i), {"k": 1})
        assert fill(run, size=2) == list(range(i - 1, 5, 3))
        with pytest.raises(mu.results.Incomplete, match=r"[12] of 5 batches of 'part' are on disk"):
            run.results()
        shutil.copytree(tmp_path / str(i), tmp_path / "all", dirs_exist_ok=True)
    monkeypatch.delenv("MASSACT_BATCHES")
    joined = mu.Run(tmp_path / "all", {"k": 1})
    assert fill(joined, size=2) == []
    fill(mu.Run(tmp_path / "whole", {"k": 1}), size=2)
    pd.testing.assert_frame_equal(joined.results(), mu.Run(tmp_path / "whole", {"k": 1}).results())
    monkeypatch.setenv("MASSACT_BATCHES", "4/3")
    with pytest.raises(ValueError, match="MASSACT_BATCHES=4/3 is no share; write it as in 3/16"):
        joined.pending(PROMPTS)


def test_out_of_memory_halves_the_batch(tmp_path):
    tried = []

    def measure(batch):
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return table(batch)

    run = mu.Run(tmp_path, {})
    with pytest.warns(UserWarning, match=r"out of memory; going on with 2 prompts at once"):
        for batch in run.pending(PROMPTS, 8):
            run.add(batch, measure)
    assert tried == [8, 4, 2, 2, 2, 2, 2]  # the size that fitted is kept for the next batch
    fill(mu.Run(tmp_path / "whole", {}), size=8)
    pd.testing.assert_frame_equal(run.results(), mu.Run(tmp_path / "whole", {}).results())


def test_what_does_not_fit_at_all_is_an_error(tmp_path):
    def measure(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    run = mu.Run(tmp_path, {})
    with pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError):
        run.add(next(run.pending(PROMPTS, 2)), measure)
    with pytest.raises(KeyError):  # any other error is the notebook's own
        run.add(next(run.pending(PROMPTS, 2)), lambda batch: {}["x"])


def test_saved_things_read_back_and_nothing_unfinished_stays(tmp_path):
    run = mu.Run(tmp_path, {})
    frame = pd.DataFrame({"a": [1, 2]})
    assert run.save("table", frame).name == "table.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(run.path("table.parquet")), frame)
    run.save("array", xr.DataArray([1.0, 2.0], dims="x"))
    assert xr.load_dataset(run.path("array.nc"), engine="scipy")["values"].values.tolist() == [1, 2]
    run.save("figure", Figure())
    run.save("images/one.webp", Image.new("RGB", (4, 4), "red"))
    assert Image.open(run.path("figure.png")).format == "PNG"
    assert Image.open(run.path("images/one.webp")).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(TypeError):
        run.save("b", object())
    assert not [path for path in tmp_path.rglob("*") if "unfinished" in path.name]


def test_a_claim_is_on_disk_before_it_is_found(tmp_path):
    run = mu.Run(tmp_path, {"model": "toy"}, pipe=None)
    words = {"owner": "paper", "sentence": "The top hurts.", "measure": "PSNR", "threshold": 0.1, "side": "above"}
    assert run.claim("02.a", **words)["verdict"] == "undecided"
    assert json.loads((tmp_path / "claims.json").read_text())[0]["value"] is None
    assert run.claim("02.a", 0.5, 0.4, 0.6, n=12)["verdict"] == "holds"
    (row,) = json.loads((tmp_path / "claims.json").read_text())
    found = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 12, "verdict": "holds", "note": ""}
    assert row == words | found | {"id": "02.a", "model": "toy", "notebook": "02"}


def test_default_folders_follow_the_parameters(tmp_path, monkeypatch):
    monkeypatch.setenv("MASSACT_RUNS", str(tmp_path))
    a, b = (mu.results.folder("", "02_disruption", {"k": k, "out_dir": ""}) for k in (4, 5))
    assert a != b and a.parent == b.parent == tmp_path / "02_disruption"
    assert mu.results.folder("", "01_statistics") == tmp_path / "01_statistics"
    assert mu.results.folder(str(tmp_path / "x"), "02", {"k": 4}) == tmp_path / "x"
    with pytest.raises(ValueError, match=r"out_dir = ''; take one from mu.results.folder"):
        mu.Run("", {})


def test_a_folder_in_which_nothing_can_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"is a file; name a folder"):
        mu.Run(tmp_path / "file", {})


WORKER = """
import sys, time
import pandas as pd
import massact_utils as mu
run = mu.Run(sys.argv[1], {})
for batch in run.pending(list(range(12)), 2):
    with open(sys.argv[2], "a") as log:
        log.write(f"{batch.index}\\n")
    print(batch.index, flush=True)
    time.sleep(float(sys.argv[3]))
    run.add(batch, pd.DataFrame({"at": batch.indices}))
print(run.results()["at"].tolist() == list(range(12)), flush=True)
"""


def test_two_processes_share_a_folder_and_one_that_dies_leaves_its_batch_to_the_other(tmp_path):
    def start(pause):
        words = [sys.executable, "-c", textwrap.dedent(WORKER), tmp_path / "out", tmp_path / "log", str(pause)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    slow = start(600)
    assert slow.stdout.readline() == "0\n"  # it holds batch 0 and sleeps
    fast = start(0.05)
    deadline = time.monotonic() + 60
    while len((tmp_path / "log").read_text().split()) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sorted((tmp_path / "log").read_text().split()) == list("012345")
    assert fast.poll() is None  # it waits for batch 0
    slow.kill()
    slow.wait()
    assert fast.communicate(timeout=60)[0].split() == [*"123450", "True"]
    slow.stdout.close()


def test_a_table_with_parts_missing_is_not_given_out(tmp_path):
    run = mu.Run(tmp_path, {"k": 1})
    for batch in list(run.pending([f"prompt {i}" for i in range(10)], size=4))[:1]:
        run.add(batch, table(batch))
    with pytest.raises(mu.results.Incomplete, match="1 of 3 batches of 'part' are on disk: run the loop to its end"):
        run.results()
    with pytest.raises(mu.results.Incomplete, match="1 of 3"):
        mu.Run(tmp_path, {"k": 1}).results()


def test_a_folder_without_parameters_is_not_one_with_them(tmp_path):
    mu.Run(tmp_path, {})
    with pytest.raises(ValueError, match="k = '\\(none\\)' there, 5 here"):
        mu.Run(tmp_path, {"k": 5})


def test_results_of_another_evaluator_are_others(tmp_path, monkeypatch):
    toy = tmp_path / "toy"
    (toy / "clip").mkdir(parents=True)
    (toy / "clip" / "model.safetensors").write_bytes(b"one")
    monkeypatch.setattr(provenance.places, "data", lambda *names: tmp_path.joinpath(*names))
    parameters = {"evaluator": "toy"}
    default = mu.results.folder("", "x", parameters)
    mu.Run(tmp_path / "mine", parameters)
    (toy / "clip" / "model.safetensors").write_bytes(b"two")
    assert mu.results.folder("", "x", parameters) != default
    with pytest.raises(ValueError, match=r"files\.evaluator"):
        mu.Run(tmp_path / "mine", parameters)


def test_two_threads_are_never_inside_one_lock(tmp_path):
    inside, most = [], []

    def work(i):
        for _ in range(20):
            with files.locked(tmp_path / "lock"):
                inside.append(i)
                most.append(len(inside))
                time.sleep(0.001)
                inside.remove(i)

    list(ThreadPoolExecutor(4).map(work, range(4), timeout=30))
    assert len(most) == 80 and max(most) == 1


def test_a_second_thread_finds_a_batch_claimed(tmp_path):
    def other():
        with files.locked(tmp_path / "lock", wait=False) as mine:
            return mine

    with files.locked(tmp_path / "lock", wait=False) as mine, ThreadPoolExecutor(1) as pool:
        assert mine and not pool.submit(other).result()
    assert other()


def test_files_in_the_making_have_names_of_their_own(tmp_path):
    """Two machines may have the same process number."""
    with places.atomic_write(tmp_path / "a") as one, places.atomic_write(tmp_path / "a") as other:
        assert one != other
        one.write_text("1"), other.write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_parameters_that_name_files_are_taken_for_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "union").write_text("a file that is called as a choice is")
    assert provenance.contents({"mask": "union"}) == {} and list(provenance.contents({"prompts": "union"})) == [
        "prompts"
    ]
    assert provenance.public({"mask": "union", "note": str(tmp_path / "x")}) == {"mask": "union", "note": "x"}


@pytest.mark.parametrize(
    "value", [(96, 96), np.int64(3), np.arange(2), Path("a"), float("nan"), {"nested": (1, float("nan"))}]
)
def test_any_value_that_json_can_hold_is_a_parameter(tmp_path, value):
    mu.Run(tmp_path, {"a": value})
    mu.Run(tmp_path, {"a": value})
    with pytest.raises(ValueError, match="holds other results: a"):
        mu.Run(tmp_path, {"a": 7.5})


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"out_dir = None; take one from"):
        mu.Run(None, {})
    with pytest.raises(ValueError, match=r"seed = 1\.7 is not possible; allowed: 0 to"):
        mu.Run(tmp_path, {"seed": 1.7})
    run = mu.Run(tmp_path, {"seed": np.int64(3)})
    (batch,) = run.pending("a red fox", name="one")
    assert batch.prompts == ["a red fox"] and batch.seeds == [3]
    for prompts, size, said in (
        ([], 4, r"prompts = \[\] are none"),
        (PROMPTS, 0, "size = 0"),
        (PROMPTS, 2.5, "size = 2.5"),
    ):
        with pytest.raises(ValueError, match=said):
            run.pending(prompts, size)
    for name in ("../x", "/tmp/x"):
        with pytest.raises(ValueError, match="leaves the folder of results"):
            run.save(name, pd.DataFrame())


@pytest.mark.parametrize("suffix", [".parquet", ".nc"])
def test_every_flipped_bit_of_a_part_is_noticed(tmp_path, suffix):
    run = mu.Run(tmp_path, {})
    for batch in run.pending(PROMPTS, 4):
        run.add(batch, table(batch) if suffix == ".parquet" else dataset(batch))
    part = run.parts / f"part-00001{suffix}"
    whole = part.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(whole), 60):
        part.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(mu.results.Incomplete, match=r"2 of 3 .*\(part-00001 missing or damaged\)"):
            run.results()
    part.write_bytes(whole)
    assert run.results() is not None


def test_results_are_the_parts_of_their_own_names(tmp_path):
    run = mu.Run(tmp_path, {})
    fill(run)
    for name in ("part-00007", "part-000001"):
        for end in (".parquet", ".parquet.sha256"):
            shutil.copy(run.parts / f"part-00001{end}", run.parts / f"{name}{end}")
    assert len(run.results()) == 10
    (run.parts / "part-00001.parquet").unlink()
    with pytest.raises(mu.results.Incomplete, match="part-00001 missing"):
        run.results()
    (run.parts / "part-00001.parquet").mkdir()
    with pytest.warns(UserWarning, match="set aside"):
        assert fill(run) == [1]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE, errno.EACCES])
def test_a_part_that_cannot_be_read_now_is_an_error_and_stays(tmp_path, monkeypatch, number):
    run = mu.Run(tmp_path, {})
    fill(run)

    def fail(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "_sum", fail)
    with pytest.raises(OSError, match=r"part-00000.parquet, of \w+, cannot be read now"):
        fill(run)
    monkeypatch.undo()
    assert fill(run) == [] and not list(run.parts.glob("*.unreadable"))


def test_a_process_does_not_write_into_a_folder_begun_anew(tmp_path):
    run = mu.Run(tmp_path / "a", {"seed": 0})
    batch = next(run.pending(PROMPTS, 4))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(RuntimeError, match="was removed while this ran; start this one again"):
        run.add(batch, table(batch))
    other = mu.Run(tmp_path / "a", {"seed": 100})
    with pytest.raises(RuntimeError, match="was removed and begun anew while this ran"):
        run.add(batch, table(batch))
    fill(other)
    assert other.results()["seed"].tolist() == list(range(100, 110))


@pytest.mark.parametrize("name", ["parameters.json", "provenance.json", "claims.json"])
@pytest.mark.parametrize("words", ["", "\0\0", "3"])
def test_a_damaged_json_file_is_named_with_the_remedy(tmp_path, name, words):
    run = mu.Run(tmp_path, {"k": 1})
    (tmp_path / name).write_text(words)
    with pytest.raises(
        ValueError, match=rf"{name} (is empty or damaged|holds a int).*restore it from a copy or by `git checkout`, or"
    ):
        mu.Run(tmp_path, {"k": 1}) if name != "claims.json" else run.claim("02.a", threshold=0)


def test_what_a_killed_process_left_is_taken_away(tmp_path):
    mu.Run(tmp_path, {})
    (tmp_path / ".provenance.json.0123.unfinished").touch()
    mu.Run(tmp_path, {})
    assert not list(tmp_path.glob(".*unfinished"))


def test_a_dataset_with_nothing_in_it_is_refused(tmp_path):
    run = mu.Run(tmp_path, {})
    batch = next(run.pending(PROMPTS, 4))
    with pytest.raises(ValueError, match="nothing along layer; NetCDF cannot hold it"):
        run.add(batch, xr.Dataset({"a": (("image", "layer"), np.zeros((4, 0)))}))


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), r"belongs to \w+; let both users set umask 002"),
        (OSError(errno.ENOLCK, "No locks available"), r"gives no file locks .*; mount it with flock, or name another"),
    ],
)
def test_a_lock_that_is_refused_names_the_owner_or_the_file_system(tmp_path, monkeypatch, error, remedy):
    def refuse(self, **how):
        raise error

    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    with pytest.raises(type(error), match=remedy):
        mu.Run(tmp_path, {})


def test_a_finished_folder_is_read_by_who_may_not_write(tmp_path, monkeypatch):
    fill(mu.Run(tmp_path, {"k": 1}))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    reader = mu.Run(tmp_path, {"k": 1})
    assert fill(reader) == [] and len(reader.results()) == 10
    (reader.parts / "part-00001.parquet").unlink()
    with pytest.raises(PermissionError, match=r"belongs to \w+ and lacks 1 batches; let all users of it set umask 002"):
        fill(reader)


def test_another_model_in_memory_is_refused(tmp_path):
    pipe = tiny.klein()
    run = mu.Run(tmp_path, {}, pipe=pipe)
    fill(run, name="first")
    weight = pipe.transformer.proj_out.weight
    with torch.no_grad():
        kept, weight[-1] = weight[-1].clone(), 0  # one channel, far behind the first values
    with pytest.raises(ValueError, match=r"model.in memory.transformer = .* there"):
        fill(run)
    with pytest.raises(ValueError, match=r"model.in memory.transformer = .* there"):
        mu.Run(tmp_path, {}, pipe=pipe)
    with torch.no_grad():
        weight[-1] = kept
    assert fill(run) == [0, 1, 2]


def test_an_adapter_and_its_scale_are_another_model():
    """A layer as PEFT makes it, which is no dependency."""
    pipe = tiny.klein()
    layer = torch.nn.Linear(2, 2)
    layer.active_adapters, layer.scaling, layer.disable_adapters = ["mine"], {"mine": 1.0, "other": 2.0}, False
    pipe.transformer.lora = layer
    assert provenance.in_memory(pipe)["adapters"] == {"transformer.mine": [1.0]}
    layer.scaling["mine"] = 0.5
    assert provenance.in_memory(pipe)["adapters"] == {"transformer.mine": [0.5]}
    layer.disable_adapters = True
    assert provenance.in_memory(pipe)["adapters"] == {}


def test_every_file_of_a_models_folder_counts(tmp_path):
    folder = tmp_path / "mine" / "toy"
    tiny.klein().save_pretrained(folder)
    before = provenance.content(folder)
    assert provenance.public({"model": str(folder)})["model"] == f"toy-{before[:6]}"  # and not the embedded toy
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert provenance.content(folder) != before, path
        path.write_bytes(whole)
    (folder / "README.md").write_text("a card"), (folder / ".git").mkdir()
    assert provenance.content(folder) == before


def test_of_a_large_file_the_header_and_a_block_of_every_tensor_count(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "WHOLE", 1000), monkeypatch.setattr(provenance, "BLOCK", 64)
    path, tensors = tmp_path / "a.safetensors", {f"t{i}": torch.ones(100) for i in range(5)}
    seen = set()
    for name in (None, *tensors):
        save_file(tensors | ({name: torch.zeros(100)} if name else {}), path)
        seen.add(provenance.content(path))
    assert len(seen) == 6


def test_no_path_and_no_secret_is_kept(tmp_path):
    name = "<img src=x onerror=alert(1)>"
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").touch()
    given = {"model": str(tmp_path / name), "call": {"token": "hf_secret", "file": str(tmp_path / "a.txt")}}
    text = json.dumps(provenance.public(given | {"paths": [str(tmp_path / "b"), "~/c", "../../d", "e/f"]}))
    assert str(tmp_path) not in text and "hf_secret" not in text and "<" not in text
    for kept in ("a.txt", '"b", "c", "d", "e/f"'):
        assert kept in text


def test_a_notebooks_last_line_says_where_results_lie_and_how_to_read_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = mu.Run("out", {"model": "nobody's"})
    run.save("table", pd.DataFrame({"k": [1, 2]}))
    run.claim("01.a", owner="ours", sentence="It is so.", measure="share", threshold=0.5, side="above")
    shown = run._repr_mimebundle_()["text/markdown"]
    assert "| It is so. *share, above 0.5* | not measured |" in shown and "**Results** lie in `out`" in shown
    (code,) = re.findall(r"`(pd\..*?)`", shown)
    assert list(eval(code).k) == [1, 2] and "views.saved" not in shown and len(shown.split("**")) == 7


@pytest.mark.parametrize("watched", [True, False])
def test_one_bar_moves_within_a_batch_and_leaves_one_line(tmp_path, monkeypatch, capsys, watched):
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook") if watched else monkeypatch.delenv("JPY_SESSION_NAME", False)
    pipe = tiny.klein()
    pipe.transformer.register_forward_pre_hook(lambda *_: time.sleep(0.15))  # the line is brought up to date meanwhile
    run = mu.Run(tmp_path, {}, pipe=pipe)
    for batch in run.pending(["a red star"] * 4, 2):
        mu.generate(pipe, batch.prompts, seeds=batch.seeds, **tiny.KLEIN)
        run.add(batch, table(batch))
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    within = [
        line
        for line in lines
        if re.match(r"part: [01] of 4 images .* left, 2 at once, step [123] of 4: a red star", line)
    ]
    assert bool(within) == watched and not hasattr(pipe, "_progress_bar_config")
    left = [line.strip() for line in lines if line.strip()][-1:]
    assert re.fullmatch(r"part: 4 of 4 images in \d\d:\d\d", left[0]) if watched else not left
    for batch in run.pending(["a red star"] * 4, 2):
        raise AssertionError(batch)
    assert capsys.readouterr().err == "", "nothing to do, nothing to show"


def test_a_bar_learns_how_many_images_a_prompt_takes_and_ends_with_a_loop_left_early(monkeypatch, capsys):
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook")
    pipe = tiny.klein()
    with pytest.raises(KeyboardInterrupt), progress.Bar("part", 4) as bar:
        bar.begin(2)
        for _ in range(3):
            mu.generate(pipe, ["a red star"] * 2, **tiny.KLEIN)
        bar.end(2)
        bar.begin(2)
        mu.generate(pipe, ["a red star"] * 2, **tiny.KLEIN)
        bar.show()
        assert bar.bar.n == pytest.approx(2 + 2 / 3) and "8 of 12 images" in capsys.readouterr().err
        raise KeyboardInterrupt
    before = capsys.readouterr().err
    time.sleep(0.7)
    assert capsys.readouterr().err == "" and "8 of 12" in before, "its clock stands"
