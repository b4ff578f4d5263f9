"""Spatial: every way to mark the subject, by channels and without them, at all layers and steps of every prompt.

look = rendered(pipe, toyworld, **call)                       # or generated(pipe, {"model": "toy"}): images, masks
scores = rank(results, look, prompts[:16:2])                  # by what channels are ranked
sets = Sets(order, k=12, seed=0, every=True)                  # which channels are cut, and how
data = run(results, pipe, look, prompts, sets, steps=[0, 3])  # a table of overlaps, image by image
"""

from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import xarray as xr

from ..measures import evaluators, things
from ..measures.evidence import DRAWS
from ..measures.masks import best_consensus, centre_mask, coverage, overlaps_with_baselines, token_colours
from ..models.load import generate
from ..models.noise import encode
from ..probes.attach import attach
from ..probes.attention import concept_attention, word_positions
from ..probes.channels import ChannelStats
from ..probes.predicted import matches_flow, predicted_x0, to_tokens
from ..probes.record import Record
from ..probes.transport import noised_source
from ..results.run import Batch
from ..worlds import grammar

BORDER = dict(method="border", scaling="standard")
CUTS = {"": {}, ", border": BORDER}  # endings of an arm's name, and how its tokens are cut
AT_ONCE = 8


def rendered(pipe, world, **call):
    """A world's scenes, drawn and noised to every step, in the place of generated images: a function of a batch and
    probes that gives images (B, h, w, 3) and exact masks by name.
    """

    def look(batch, *probes, steps=None):
        images, masks, _ = world.render([world.parse(text) for text in batch.prompts], seed=batch.seeds[0])
        noised_source(pipe, images, *probes, prompt=batch.prompts, seed=batch.seeds, steps=steps, **call)
        return images, masks

    return look


def generated(pipe, reference: dict, **call):
    """The same of the model's own images; `reference` are the arguments of `evaluators.subject_masks`."""

    def look(batch, *probes, steps=None):
        with attach(pipe, *probes, steps=steps):
            images = generate(pipe, batch.prompts, seeds=batch.seeds, **call)
        images = np.stack([np.asarray(image) for image in images])
        return images, {"subject": evaluators.subject_masks(images, **reference)}

    return look


def rank(results, look, prompts) -> xr.Dataset:
    """By what channels are ranked: mean_abs (image, layer, channel), and the noise level of every step (moment)."""
    for batch in results.pending(prompts, AT_ONCE, name="scores"):
        look(batch, stats := ChannelStats())
        table = stats.dataset()
        noise = "moment", table.timestep.values / 1000
        results.add(batch, table[["mean_abs"]].mean(["branch", "step"]).assign(noise=noise))
    return results.results("scores")


@dataclass
class Sets:
    """The sets of k channels that are cut, by their ranks in `order` (layer, rank), and how.

    `many` ranks are in memory, all with `every`, `few` on disk; `arms` are those of `masks.overlaps`: top, bottom,
    outside with its draws, each by two rules, and with `every` all channels.
    """

    order: xr.DataArray
    k: int = 12
    seed: int = 0
    every: bool = False
    few: range = field(init=False)
    many: np.ndarray = field(init=False)
    arms: dict = field(init=False)

    def __post_init__(self):
        k, width, rng = self.k, self.order.sizes["rank"], np.random.default_rng(self.seed)
        outside = [k + rng.permutation(width - k)[:k] for _ in range(DRAWS)]
        self.few = range(min(max(k, 32), width))
        many = np.unique([*self.few, *range(width - k, width), *np.ravel(outside)])
        self.many = np.arange(width) if self.every else many
        sets = {"top": range(k), "bottom": range(width - k, width)}
        self.arms = {}
        for end, cut in CUTS.items():
            ranks = {f"{name}{end}": chosen for name, chosen in sets.items()}
            ranks |= {f"outside{end} {i}": chosen for i, chosen in enumerate(outside)}
            self.arms |= {name: cut | dict(ranks=np.searchsorted(self.many, some)) for name, some in ranks.items()}
        if self.every:
            self.arms |= {"all": {}, "all, PCA": dict(method="pca"), "all, border": BORDER}


def run(results, pipe, look, prompts, sets: Sets, steps, *, world=None) -> xr.Dataset:
    """Overlaps of all arms and baselines with the subject, as `masks.overlaps` has them, with share (image, thing, row,
    column) of the tokens' areas and small pictures; the `few` channels of a batch are kept in the results' records/.

    With a world, whose captions the prompts are, the model's attention to their words is a baseline, too, where it can
    be read (`subject_attention`), and, where the world can draw, what the captions say of the tokens (`caption_masks`).
    """
    for batch in results.pending(prompts, AT_ONCE):
        records = [Record(sets.order[:, ranks]) for ranks in (sets.many, sets.few)]
        attention = subject_attention(pipe, batch.prompts, world, steps) if world else nullcontext({})
        with _predicted(pipe, steps) as guesses, attention as heat:
            images, masks = look(batch, *records, steps=steps)
        records[1].save(results.path(f"records/{batch.index}.safetensors"))
        grid = records[0].grid
        baselines = image_tokens(pipe, images, grid)
        if world and world.render:
            likely = caption_masks(batch.prompts, world, grid)
            baselines["caption"] = {0: likely.reshape(len(likely), -1).astype(np.float32)}
        baselines |= {"own guess": guesses, "attention": heat}
        share = np.stack([coverage(mask, grid) for mask in masks.values()], 1)  # image thing H W
        arms = sets.arms | {"centre": centre_mask(grid)}
        table = overlaps_with_baselines(records[0], share[:, 0] > 0.5, arms, baselines, CUTS).to_dataset()
        table["share"] = ("image", "thing", "row", "column"), share
        results.add(batch, table.assign(picture=_small(images)).assign_coords(thing=[*masks]))
    return results.results()


def run_seeds(results, pipe, look, prompts, sets: Sets, steps) -> xr.Dataset:
    """The same, by the model's own guess alone, of prompts that come once for each seed; share is the subject's."""
    for batch in results.pending(prompts, AT_ONCE, name="seeds"):
        record = Record(sets.order[:, sets.many])
        with _predicted(pipe, steps) as guesses:
            images, masks = look(batch, record, steps=steps)
        share = coverage(masks["subject"], record.grid)
        table = overlaps_with_baselines(record, share > 0.5, sets.arms, {"own guess": guesses}, CUTS).to_dataset()
        results.add(batch, table.assign(share=(("image", "row", "column"), share), picture=_small(images)))
    return results.results("seeds")


def embedded(results, look, prompts, sets: dict, *, layer: int, step: int, seed: int = 0, most: int = 4000):
    """The tokens of some images in the plane, by sets of channels {name: ids}, and how surely neighbours are alike.

    Every channel is standardised within its image. Tokens that are half one thing, half another are left out; of many,
    `most` are drawn. Gives two tables, kept in the results' embedded.parquet and purity.parquet: a row a token, set
    and `by` ("UMAP" or "PCA") with x, y, thing and image; and a row a set and space ("channels", too) with `purity`
    (`things.purity`) and trustworthiness (Venna and Kaski 2001: 1 where neighbours in the plane are neighbours).
    """
    if not results.path("purity.parquet").exists():
        from sklearn.manifold import trustworthiness

        seen, batch = [], Batch("embedded", 0, [*range(len(prompts))], [*prompts], [seed + 10**5] * len(prompts))

        def read(tokens, site):
            if (site.layer, site.branch) == (layer, "cond"):
                seen[:] = tokens.float().cpu().numpy(), site.grid

        _, masks = look(batch, read, steps=[step])
        tokens, grid = seen
        parts = things.with_ground(np.stack([coverage(mask, grid) for mask in masks.values()], 1))
        whole = np.argwhere(parts.any(1).reshape(len(prompts), -1))  # image, token
        image, token = np.random.default_rng(seed).permutation(whole)[:most].T
        thing = parts.argmax(1).reshape(len(prompts), -1)[image, token]
        points, scores = [], []
        for name, ids in sets.items():
            x = tokens[:, :, np.asarray(ids)]
            x = ((x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1e-6))[image, token]
            for by, place in {"channels": x, **things.embed(x, seed)}.items():
                near = trustworthiness(x, place, n_neighbors=10) if by != "channels" else 1.0
                scores.append(dict(set=name, by=by, purity=things.purity(place, thing, image), trustworthiness=near))
                row = dict(set=name, by=by, x=place[:, 0], y=place[:, 1], thing=thing, image=image)
                points += [pd.DataFrame(row)] if by != "channels" else []
        names = np.array([*masks, "ground"])
        points = pd.concat(points, ignore_index=True)
        results.save("embedded", points.assign(thing=names[points.thing]))
        results.save("purity", pd.DataFrame(scores))
    return tuple(pd.read_parquet(results.path(f"{name}.parquet")) for name in ("embedded", "purity"))


def image_tokens(pipe, images, grid: tuple[int, int]) -> dict:
    """Images (image, h, w, 3) uint8 as the tokens see them, "pixels" (image, N, 3) and "latents" (image, N, C), each as
    {0: tokens}, which is what `masks.overlaps_with_baselines` takes.
    """
    clean = to_tokens(encode(pipe, [*images], *images.shape[1:3]), grid).float().cpu()
    return {"pixels": {0: token_colours(images, grid)}, "latents": {0: clean}}


def caption_masks(captions, world, grid: tuple[int, int], n: int = 32) -> np.ndarray:
    """The mask that overlaps the subjects of n other renders of each caption most: (image, H, W) bool.

    Raises ValueError for a text that is no caption of the world.
    """
    masks = []
    for caption in captions:
        subjects = world.render([world.parse(caption)] * n, seed=10**6, size=4 * grid[0])[1]["subject"]
        masks.append(best_consensus(coverage(subjects, grid) > 0.5))
    return np.stack(masks)


def open_layout(text: str, world) -> str:
    """A caption that leaves size and place open; as it is in a world whose captions name neither, and without a world.

    >>> from massact_utils.worlds import toyworld
    >>> open_layout("a small red star at the left on a blue plain ground", toyworld)
    'a red star on a blue plain ground'
    >>> open_layout("a dog in the rain", None)
    'a dog in the rain'
    """
    named = [name for name in grammar.LAYOUT if world and name in world.ATTRIBUTES]
    return world.caption(replace(world.parse(text), **dict.fromkeys(named))) if named else text


@contextmanager
def subject_attention(pipe, captions, world, steps=None):
    """`concept_attention` of a world's captions, one a row: the subject's words against the ground's. Nothing, {}, for
    a caption without one of the two, and for a model whose attention or tokenizer does not tell of words.
    """
    with ExitStack() as stack:
        heat, scenes = {}, [world.parse(text) for text in captions]
        both = [[grammar.phrases(world, scene, part) for part in ("subject", "ground")] for scene in scenes]
        if all(map(all, both)):
            with suppress(TypeError):
                rows = zip(captions, both, strict=True)
                places = [[_positions(pipe, text, phrases) for phrases in parts] for text, parts in rows]
                heat = stack.enter_context(concept_attention(pipe, places, steps))
        yield heat


def _positions(pipe, caption: str, phrases) -> list[int]:
    """Positions of phrases among the text tokens, in the caption's own upper and lower case."""
    at = [caption.lower().find(phrase.lower()) for phrase in phrases]
    written = [caption[i : i + len(phrase)] for i, phrase in zip(at, phrases, strict=True)]
    return [place for words in written for place in word_positions(pipe, caption, words)]


def _predicted(pipe, steps):
    return predicted_x0(pipe, steps) if matches_flow(pipe.scheduler) else nullcontext({})


def _small(images, most: int = 256):
    """Images (B, h, w, 3) by every n-th pixel, as a variable."""
    return ("image", "y", "x", "rgb"), images[:, :: -(-images.shape[1] // most), :: -(-images.shape[2] // most)]
