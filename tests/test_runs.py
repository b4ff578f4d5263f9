"""Run: whole batches, each once; a folder belongs to one set of parameters, one model and one list of prompts."""

import json
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

import massact_utils as mu
import tiny
from massact_utils import places
from massact_utils.results import provenance, storage
from massact_utils.results.run import part_of

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
    assert not [path.name for path in run.parts.iterdir() if path.suffix != ".parquet"]  # no locks, nothing unfinished


def test_a_second_run_finds_nothing_pending(tmp_path):
    fill(mu.Run(tmp_path, {"k": 4}))
    again = mu.Run(tmp_path, {"k": 4})
    assert fill(again) == [] and len(again.results()) == 10


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
    fill(mu.Run(tmp_path, {"k": 4, "seed": 0, "out_dir": "elsewhere", "shard": "1/1"}))  # these change no result


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
    with pytest.raises(ValueError, match=r"model.weights = .* there, .* here"):
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
    assert found["model"] == {"name": "some/model", "class": "Flux2KleinPipeline", "revision": "unknown"}
    assert (found["device"], found["dtype"], found["seed"]) == ("cpu", "float32", 3)
    assert found["prompts"]["part"]["of content"] == provenance.digest(PROMPTS)


def test_a_hub_models_revision_is_the_commit_it_resolved_to(monkeypatch):
    commit, klein = "0123456789" * 4, tiny.klein()
    monkeypatch.setattr(klein.text_encoder.config, "_name_or_path", f"/home/me/hub/models--a--b/snapshots/{commit}/t")
    assert provenance.of({"model": "a/b"}, klein)["model"]["revision"] == commit


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:200] + b"?" + b[201:]])
def test_a_part_that_does_not_read_is_set_aside_and_redone(tmp_path, spoil):
    run = mu.Run(tmp_path, {})
    fill(run)
    before, part = run.results(), run.parts / "part-00001.parquet"
    part.write_bytes(spoil(part.read_bytes()))
    with pytest.warns(UserWarning, match=r"part-00001.parquet does not read .* set aside as .*unreadable"):
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


@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_a_dataset_cut_short_is_redone(tmp_path, kept):
    run = mu.Run(tmp_path, {})
    for batch in run.pending(PROMPTS, 4):
        run.add(batch, dataset(batch))
    part = run.parts / "part-00002.nc"
    part.write_bytes(part.read_bytes()[: int(part.stat().st_size * kept)])
    with pytest.warns(UserWarning, match=r"part-00002.nc does not read"):
        assert [batch.index for batch in run.pending(PROMPTS, 4)] == [2]


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 1, 2]])
def test_shards_are_the_whole_whatever_the_order(tmp_path, order):
    fill(mu.Run(tmp_path / "whole", {"k": 1}), size=2)
    for i in order:
        run = mu.Run(tmp_path / "shards", {"k": 1, "shard": f"{i}/3"})
        assert fill(run, size=2) == list(range(i - 1, 5, 3))
        if i != order[-1]:
            with pytest.raises(mu.results.Incomplete, match=rf"shard {i}/3 is done; . of 5 batches"):
                run.results()
    last = mu.Run(tmp_path / "shards", {"k": 1})
    assert fill(last, size=2) == []
    pd.testing.assert_frame_equal(last.results(), mu.Run(tmp_path / "whole", {"k": 1}).results())


def test_a_shard_is_told_by_argument_parameter_or_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MASSACT_SHARD", "2/5")
    assert mu.Run(tmp_path, {}).shard == (2, 5) == mu.Run(tmp_path, {"shard": "1/1"}).shard
    assert mu.Run(tmp_path, {"shard": "3/4"}).shard == (3, 4)
    assert mu.Run(tmp_path, {"shard": "3/4"}, shard="1/1").shard == (1, 1)


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/2/3", "-1/3", ""])
def test_a_shard_that_is_no_share_is_refused(shard):
    with pytest.raises(ValueError, match=r"is no share"):
        part_of(shard)


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
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="zero"):
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


def test_claims_are_rows_replaced_by_their_id(tmp_path):
    run = mu.Run(tmp_path, {"model": "toy"}, pipe=None)
    run.claim("02.top-hurts", 0.5, 0.4, 0.6, True, "PSNR")
    run.claim("02.another", float("nan"), float("nan"), float("nan"), False, "not measurable")
    run.claim("02.top-hurts", np.float32(0.25), 0.1, 0.3, np.bool_(False), "PSNR")
    first, second = json.loads((tmp_path / "claims.json").read_text())
    assert first["id"] == "02.another" and first["value"] is None and first["holds"] is False
    found = {"id": "02.top-hurts", "value": 0.25, "low": 0.1, "high": 0.3, "holds": False, "note": "PSNR"}
    assert found | {"verdict": "undecided", "model": "toy", "notebook": "02"} == {
        name: second[name] for name in [*found, "verdict", "model", "notebook"]
    }


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
    assert mu.results.folder("", "02_disruption", {"k": 4, "out_dir": "", "shard": "2/3"}) == a
    assert mu.results.folder("", "01_statistics") == tmp_path / "01_statistics"
    assert mu.results.folder(str(tmp_path / "x"), "02", {"k": 4}) == tmp_path / "x"
    with pytest.raises(ValueError, match=r"out_dir is empty; take one from mu.results.folder"):
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
            with storage.locked(tmp_path / "lock"):
                inside.append(i)
                most.append(len(inside))
                time.sleep(0.001)
                inside.remove(i)

    list(ThreadPoolExecutor(4).map(work, range(4), timeout=30))
    assert len(most) == 80 and max(most) == 1


def test_a_lock_file_that_another_makes_and_takes_away_meanwhile_is_made_anew(tmp_path, monkeypatch):
    path, stat, seen = tmp_path / "lock", Path.stat, []

    def after_another(self, **how):
        if self != path or seen:
            return stat(self, **how)
        path.unlink(), path.touch()  # the first holder is done, another holds a file of that name
        seen.append(stat(self, **how))
        path.unlink()  # and is done, too
        return seen[0]

    monkeypatch.setattr(Path, "stat", after_another)
    with storage.claimed(path, wait=False) as mine:
        assert mine and seen and path.exists()
    assert not path.exists()


def test_a_second_thread_finds_a_batch_claimed(tmp_path):
    with storage.claimed(tmp_path / "lock", wait=False) as mine:
        with ThreadPoolExecutor(1) as pool:
            assert mine and not pool.submit(lambda: storage.claimed(tmp_path / "lock", wait=False).__enter__()).result()
        assert (tmp_path / "lock").exists()


def test_files_in_the_making_have_names_of_their_own(tmp_path):
    """Two machines may have the same process number."""
    with places.whole(tmp_path / "a") as one, places.whole(tmp_path / "a") as other:
        assert one != other
        one.write_text("1"), other.write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_parameters_that_name_files_are_taken_for_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "union").write_text("a file that is called as a choice is")
    assert provenance.files({"mask": "union"}) == {} and list(provenance.files({"prompts": "union"})) == ["prompts"]
    assert provenance.public({"mask": "union", "note": str(tmp_path / "x")}) == {"mask": "union", "note": "x"}
