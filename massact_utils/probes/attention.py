"""Attention: where a model's attention has a prompt's words, read off the output of its dual-stream blocks.

with concept_attention(pipe, places) as heat:  # places: for each row, the text tokens of the words for, and against
    mu.generate(pipe, prompts)
heat[3, 1]   # step 3, block 1: (B, N)
"""

from contextlib import contextmanager
from functools import partial

import torch

from ..models.calls import CallTracker
from ..models.families import CHAT_TEMPLATES, block_modules, take_tokens, target_tokens, transformers_of

# Besides those of CHAT_TEMPLATES: a transformer's class -> the tokenizer whose tokens come first in its text stream.
TOKENIZERS = {"FluxTransformer2DModel": "tokenizer_2", "SD3Transformer2DModel": "tokenizer"}


@contextmanager
def concept_attention(pipe, places, steps=None):
    """Inside, {(step, layer): heat (B, N) float32}: how much more a token's attention points to some words than others.

    Heat is the image token's attention output times the mean output of one group of text tokens, less that of the
    other, in the conditional branch: ConceptAttention (arXiv 2502.04320) with words of the prompt in the place of added
    concepts; it comes to the host on exit. `places` has two lists of text positions for each row, as from
    `word_positions`. Raises TypeError for a model whose blocks do not give image and text apart before they are
    projected.
    """
    transformer = transformers_of(pipe)[0][0]
    dual = [(block, module, part) for block, module, part in block_modules(transformer) if part.kind == "dual"]
    if not dual or not all(hasattr(getattr(module, "attn", None), "to_add_out") for _, module, _ in dual):
        raise TypeError(f"{type(transformer).__name__} has no dual blocks whose attention gives image and text apart")
    kept, found = {}, {}

    def seen(block, part, stream, module, inputs):
        if calls.layout is None:
            return
        pair = kept.setdefault(block.index, {})
        pair[stream] = inputs[0]
        if len(pair) < 2:  # which of the two comes first, families differ in
            return
        kept.pop(block.index)
        for rows in (rows for branch, rows in calls.branches if branch == "cond"):
            start, n = target_tokens(part, calls.layout, block, pair["image"])
            x, words = take_tokens(pair["image"], rows, start, n).float(), pair["text"][rows].float()
            axes = [row[mine].mean(0) - row[others].mean(0) for row, (mine, others) in zip(words, places, strict=True)]
            found[calls.step, block.index] = torch.einsum("bnd,bd->bn", x, torch.stack(axes))

    with CallTracker(pipe, steps) as calls:
        for block, module, part in dual:
            for stream, layer in (("text", module.attn.to_add_out), ("image", module.attn.to_out[0])):
                calls.add(layer.register_forward_pre_hook(partial(seen, block, part, stream)))
        yield found
    found.update({site: heat.cpu() for site, heat in found.items()})  # and not in a block, which would wait for it


def word_positions(pipe, prompt: str, words: str) -> list[int]:
    """Positions among the pipeline's text tokens of some words of a prompt, at their first place there.

    Raises ValueError for words that are not in the prompt, TypeError for a tokenizer that does not tell places, and for
    a class of transformers whose text tokens are not known to be its tokenizer's, in their order.
    """
    kind = type(pipe.transformer).__name__
    thinking, name = CHAT_TEMPLATES.get(kind), TOKENIZERS.get(kind)
    if thinking is None and name is None:
        raise TypeError(f"it is not known where the words of a prompt stand among the text tokens of {kind}")
    text, tokenizer = prompt, getattr(pipe, name or "tokenizer")
    if thinking is not None:
        options = dict(tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], **options)
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(f"{type(tokenizer).__name__} does not tell where in a text its tokens stand")
    if words not in prompt:
        raise ValueError(f"{words!r} is not in the prompt {prompt!r}")
    first = text.index(prompt) + prompt.index(words)
    spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return [i for i, (start, end) in enumerate(spans) if start < first + len(words) and end > first]
