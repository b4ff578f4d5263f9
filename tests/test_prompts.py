"""Prompt sets: bundled ones are what they say they are, and a bad file is an error with its line."""

from pathlib import Path

import pandas as pd
import pytest

import massact_utils as mu
import training.prompts
from massact_utils import prompts
from massact_utils.worlds import emojiworld, everyday, toyworld

DATA = Path(prompts.BUNDLED)


@pytest.mark.slow
def test_the_bundled_sets_are_what_their_script_makes():
    assert {path.name: path.read_text() for path in DATA.iterdir()} == training.prompts.sets()


def test_toyworld_prompts_were_never_trained_on():
    scenes = [toyworld.parse(prompt) for prompt in mu.prompts.read("toyworld")]
    assert len(scenes) == 256 and {toyworld.split_of(scene) for scene in scenes} == {"test"}
    assert mu.prompts.read("toyworld", 16) == [toyworld.caption(scene) for scene in scenes[:16]]


def test_toyworld_pairs_differ_in_what_their_kind_says_and_in_all_around():
    pairs = mu.prompts.read_pairs("toyworld-pairs")
    subject = {"shape": {"shape"}, "colour": {"colour"}, "both": {"shape", "colour"}}
    for pair in pairs.itertuples():
        source, target = toyworld.parse(pair.source), toyworld.parse(pair.target)
        assert {toyworld.split_of(source), toyworld.split_of(target)} == {"test"}
        around = {"ground", "pattern", "place", "light", "style"}
        differ = {n for n in toyworld.ATTRIBUTES if getattr(source, n) != getattr(target, n)}
        assert differ == subject[pair.kind] | around
        assert not {source.colour, target.colour} & {source.ground, target.ground}, "a subject vanishes in a ground"
    assert len({*pairs.source, *pairs.target}) == 2 * len(pairs), "a caption stands in two pairs"
    assert pairs.groupby(["split", "kind"]).size().unstack().loc[["tune", "report"]].values.tolist() == [
        [8] * 3,
        [32] * 3,
    ]


@pytest.mark.parametrize("name, world, n", [("everyday", everyday, 200), ("emojiworld", emojiworld, 120)])
def test_other_pairs_name_the_same_and_differ_in_all_of_it(name, world, n):
    pairs = mu.prompts.read_pairs(f"{name}-pairs")
    assert pairs.split.value_counts().to_dict() == {"tune": n // 5, "report": n - n // 5}
    assert len({*pairs.source, *pairs.target}) == 2 * n, "a caption stands in two pairs"
    for a, b in zip(map(world.parse, pairs.source), map(world.parse, pairs.target), strict=True):
        named = [name for name in world.ATTRIBUTES if getattr(a, name) is not None]
        assert named == [name for name in world.ATTRIBUTES if getattr(b, name) is not None]
        assert all(getattr(a, name) != getattr(b, name) for name in named)


@pytest.mark.parametrize("name", ["toyworld", "emojiworld", "everyday"])
def test_the_world_of_a_set_is_the_one_that_reads_it(name, tmp_path):
    world = mu.world_of(name)
    assert world is getattr(mu.worlds, name) is mu.world_of(f"{name}-pairs")
    own = write(tmp_path / "own.txt", "\n".join(map(world.caption, world.sample(3, seed=5))))
    assert mu.world_of(own) is world and mu.world_of(write(tmp_path / "b.txt", "a wet dog\n")) is None
    with pytest.warns(UserWarning, match=r"own.txt, row 4 is no caption of " + name):
        assert mu.world_of(write(own, own.read_text() + "\na wet dog")) is None


def test_a_file_with_words_in_columns_is_a_world_and_its_words_stand_in_its_captions(tmp_path):
    file = write(tmp_path / "a.csv", "prompt,subject,ground\na fox in snow,fox,in snow\nan owl,owl,\n")
    assert mu.world_of(file).parse("an owl").subject == "owl" and mu.world_of(file).ATTRIBUTES["ground"].words
    with pytest.raises(ValueError, match=r"a.csv: row 2: the caption 'an owl' does not contain its subject, 'elk'"):
        mu.world_of(write(file, "prompt,subject\na fox in snow,fox\nan owl,elk\n"))


@pytest.mark.parametrize("split", ["tune", "report"])
def test_any_beginning_of_the_toyworld_pairs_is_balanced(split):
    pairs = mu.prompts.read_pairs("toyworld-pairs").query("split == @split")
    for n in range(3, len(pairs) + 1, 3):
        assert pairs[:n].kind.value_counts().to_dict() == dict.fromkeys(("shape", "colour", "both"), n // 3)


@pytest.mark.parametrize("name", ["toyworld-pairs", "everyday-pairs", "emojiworld-pairs"])
def test_pairs_to_tune_on_share_no_source_with_those_to_report(name):
    sources = mu.prompts.read_pairs(name).groupby("split").source.agg(set)
    assert not sources["tune"] & sources["report"]


def test_everyday_prompts_are_distinct_and_short_enough_for_every_text_encoder():
    prompts = mu.prompts.read("everyday")
    assert len(prompts) == len(set(prompts)) == 400
    pairs = mu.prompts.read_pairs("everyday-pairs")
    assert max(len(text.split()) for text in [*prompts, *pairs.source, *pairs.target]) < 20


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", "a fox\na cat, asleep\n\n"),
        ("a.txt", "\ufeffa fox\r\na cat, asleep\r\n"),
        ("a.txt", "a fox\ra cat, asleep\r"),
        ("a.csv", 'id,Prompt\n1,a fox\n2,"a cat, asleep"\n'),
        ("a.CSV", '\ufeffid,prompt\r\n1,a fox\r\n2,"a cat, asleep"\r\n'),
        ("a.tsv", "id\tcaption\n1\ta fox\n2\ta cat, asleep\n"),
        ("a.jsonl", '{"text": "a fox"}\n{"text": "a cat, asleep"}\n'),
        ("a.JSON", '[{"text": "a fox"}, {"text": "a cat, asleep"}]'),
    ],
)
def test_files_of_every_format(tmp_path, name, content):
    assert mu.prompts.read(write(tmp_path / name, content)) == ["a fox", "a cat, asleep"]


def test_parquet_and_pairs(tmp_path):
    pd.DataFrame({"n": [1], "caption": ["a fox"]}).to_parquet(tmp_path / "a.parquet")
    assert mu.prompts.read(tmp_path / "a.parquet") == ["a fox"]
    found = mu.prompts.read_pairs(write(tmp_path / "p.csv", "target,source\na cat,a fox\n"))
    assert found.to_dict("records") == [{"source": "a fox", "target": "a cat", "kind": ""}]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "words,id\na fox,1\n", r"no column prompt, Prompt, text, caption; there are: words, id"),
        ("a.csv", "prompt,id\na fox,1\na cat,2,3\n", r"a.csv does not read: .*line 3"),
        ("a.csv", "prompt,id\na fox,1\n ,2\n", r"a.csv, row 2: prompt is ' '; every row needs some words"),
        ("a.csv", "prompt,id\na fox,1\n\na cat,2\n", r"a.csv, row 2: prompt is"),
        ("a.csv", 'prompt\n"a fox\n', r"a.csv does not read: .*EOF inside string"),
        ("a.csv", "prompt\n", r"a.csv is empty"),
        ("a.txt", "", r"a.txt is empty"),
        ("a.txt", " \n\n", r"a.txt is empty"),
        ("a.txt", "a fox\n\na cat\n", r"a.txt, row 2: prompt is ''; every row needs some words"),
        ("a.txt", b"a fox\na caf\xe9\n", r"a.txt: not UTF-8; save the file as UTF-8"),
        ("a.txt", "a fox\n".encode("utf-16-le"), r"a.txt, row 1: prompt is .*in UTF-8"),
        ("a.jsonl", '{"prompt": "a fox"}\n{"prompt": \n', r"a.jsonl does not read"),
        ("a.json", '{"prompt": \n', r"a.json does not read"),
        ("a.jsonl", '{"prompt": "a fox"}\n{"prompt": 7}\n', r"a.jsonl, row 2: prompt is 7"),
        ("a.md", "a fox", r"\.md is no format of prompts; save it as one of \.txt, \.csv"),
    ],
)
def test_a_bad_file_is_an_error_that_names_the_row(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        mu.prompts.read(write(tmp_path / name, content))


def test_pairs_name_the_columns_they_miss(tmp_path):
    with pytest.raises(ValueError, match=r"toyworld: no column source, target; there are: prompt"):
        mu.prompts.read_pairs("toyworld")


@pytest.mark.parametrize(
    "source, n, message",
    [
        (
            "toywrld",
            None,
            r"'toywrld' is no bundled set \(emojiworld, emojiworld-pairs, everyday, .*toyworld-pairs\), no file",
        ),
        ("toyworld", 300, r"300 prompts asked of 'toyworld', which holds 256"),
        ("toyworld", 0, r"0 prompts of 'toyworld'; ask for at least one"),
    ],
)
def test_sources_that_are_not_there(source, n, message):
    with pytest.raises(ValueError, match=message):
        mu.prompts.read(source, n)


def test_a_missing_file_is_no_data_set():
    with pytest.raises(FileNotFoundError, match=r"'my/prompts.csv': no such file"):
        mu.prompts.read("my/prompts.csv")


def test_a_line_too_long_for_the_tokenizer(tmp_path, klein):
    file = write(tmp_path / "a.txt", "a fox\n" + "a fox " * 600)
    assert len(mu.prompts.read(file)) == 2
    with pytest.raises(ValueError, match=r"a.txt, row 2: .* tokens, over max_sequence_length = 512"):
        mu.prompts.read(file, pipe=klein)
    assert mu.prompts.read(file, 1, pipe=klein) == ["a fox"]


class Hub:
    """A hub with the given files: {revision: [names]}."""

    def __init__(self, monkeypatch, folder, files):
        self.files, self.folder = files, folder
        monkeypatch.setattr(prompts, "HfApi", lambda: self)
        monkeypatch.setattr(prompts, "hf_hub_download", self.download)

    def list_repo_files(self, name, *, repo_type, revision):
        assert name == "some/prompts" and repo_type == "dataset"
        if revision not in self.files:
            raise OSError("cannot be reached")
        return self.files[revision]

    def download(self, name, file, *, repo_type, revision):
        assert file in self.files[revision]
        path = self.folder / file.replace("/", "_")
        if file.endswith("parquet"):
            pd.DataFrame({"Prompt": [f"from {file}"]}).to_parquet(path)
        else:
            path.write_text("from the owner\n")
        return str(path)


def test_a_data_set_of_the_hub(monkeypatch, tmp_path):
    files = [f"default/{split}/{i}.parquet" for split in ("test", "train") for i in (0, 1)]
    Hub(monkeypatch, tmp_path, {"refs/convert/parquet": files})
    with pytest.raises(ValueError, match=r"name one: some/prompts/default/test, some/prompts/default/train"):
        mu.prompts.read("some/prompts")
    expected = ["from default/test/0.parquet", "from default/test/1.parquet"]
    assert mu.prompts.read("some/prompts/default/test") == expected
    Hub(monkeypatch, tmp_path, {None: ["README.md", "all.txt"]})
    assert mu.prompts.read("some/prompts") == ["from the owner"]


def test_a_data_set_that_cannot_be_had_says_why(monkeypatch, tmp_path):
    Hub(monkeypatch, tmp_path, {})
    with pytest.raises(ValueError, match=r"'some/prompts' holds no .* the Hub hands over \(cannot be reached\)"):
        mu.prompts.read("some/prompts")
