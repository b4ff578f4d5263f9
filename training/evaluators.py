"""The evaluators of an embedded model, trained on renders: a CLIP that reads words off pictures, and a segmenter."""

import json

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTokenizer,
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from . import renders
from .klein import corpus
from .loop import DEVICE, Loop, as_pixels, autocast, note
from .renders import PARTS, SIZE, Embedded


def clip_tokenizer(embedded: Embedded) -> CLIPTokenizer:
    """A tokenizer in which every word of the world is one token; the one of an earlier training, if there is one."""
    for folder in (embedded.state / "published" / "clip", embedded.published / "clip"):
        if (folder / "tokenizer.json").exists():  # a new one numbers letters otherwise than the weights know them
            return CLIPTokenizer.from_pretrained(folder)
    special = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-")
    trainer = trainers.BpeTrainer(
        vocab_size=1300, special_tokens=special, initial_alphabet=letters, end_of_word_suffix="</w>"
    )
    texts = [text.lower() for text in corpus(embedded)]  # CLIP's tokenizer knows lower case alone
    bpe.train_from_iterator([*texts, *[" ".join(letters)] * 2], trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=embedded.text_length)


def new_clip(embedded: Embedded):
    """A small CLIP whose image tower is a ConvNeXt (it learns shapes from fewer images), tokenizer and processor."""
    tokenizer = clip_tokenizer(embedded)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=embedded.text_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = ConvNextConfig(  # the last map is 1 x 1: a mean over a larger one would forget places
        image_size=SIZE,
        patch_size=3,
        num_stages=6,
        hidden_sizes=[32, 48, 96, 160, 192, 192],
        hidden_size=192,  # where the dual encoder looks for the width
        depths=[1, 1, 2, 1, 1, 1],
        layer_scale_init_value=0.1,
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=96)
    edge = {"height": SIZE, "width": SIZE}
    processor = CLIPImageProcessorPil(
        size=edge, crop_size=edge, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_center_crop=False
    )
    clip = VisionTextDualEncoderModel(config).to(DEVICE, memory_format=torch.channels_last)
    return clip, tokenizer, processor


def train_clip(embedded: Embedded, steps: int, warm: bool = False, batch: int = 48) -> None:
    """Contrastive on whole captions, plus the zero-shot read-out of each attribute it will be used for.

    Heads that are thrown away afterwards speed it up: how much of each patch is subject, companion and shadow, what
    the thing is that a patch lies on, and each word by a linear map of the image's features. Where a world asks for it
    (ToyWorld), half of the images are grey and ask for no colour, so that a shape is read the same in any colour.
    """
    clip, tokenizer, processor = new_clip(embedded)
    if warm:
        folder = embedded.published / "clip"
        clip.load_state_dict(VisionTextDualEncoderModel.from_pretrained(folder, dtype=torch.float32).state_dict())
    allowed, sizes = embedded.words, {name: len(words) for name, words in embedded.words.items()}
    heads = {"where": torch.nn.Conv2d(96, 3, 1), "words": torch.nn.Linear(192, sum(sizes.values()))}
    heads["what"] = torch.nn.Conv2d(96, sum(sizes[name] for name in embedded.looks), 1)
    heads = torch.nn.ModuleDict(heads).to(DEVICE)
    loop = Loop(embedded.state, "clip", steps, 1e-3 if warm else 2e-3, {"clip": clip, "heads": heads}, warmup=400)
    coloured = batch // 2 if embedded.colours else batch
    questions = [embedded.question(name, word) for name in allowed for word in allowed[name]]
    captions, words, images, classes = renders.load(embedded)
    words = {name: np.array([[*allowed[name], ""].index(word) for word in words[name]]) for name in allowed}
    padded = dict(return_tensors="pt", padding="max_length", max_length=embedded.text_length, truncation=True)
    asked, said = (tokenizer(texts, **padded).to(DEVICE) for texts in (questions, captions))

    @torch.compile(dynamic=False)
    def forward(pixels, ids, attention):
        seen = clip.vision_model(pixel_values=pixels, output_hidden_states=True)
        patches = next(x for x in seen.hidden_states[::-1] if x.shape[-1] == 8)
        texts = clip.text_projection(clip.text_model(input_ids=ids, attention_mask=attention).pooler_output)
        pictures = clip.visual_projection(seen.pooler_output)
        return pictures, texts, heads["where"](patches), heads["what"](patches), heads["words"](seen.pooler_output)

    def loss_of():
        rows = torch.randint(len(images), (batch,)).numpy()
        pixels = as_pixels(images[rows])
        pixels[coloured:] = pixels[coloured:].mean(1, keepdim=True)
        noise = 0.03 * torch.randn_like(pixels) * torch.rand(batch, 1, 1, 1, device=DEVICE)
        pixels = (pixels + noise).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
        texts = (torch.cat([asked[k], said[k][rows[:coloured]]]) for k in ("input_ids", "attention_mask"))
        with autocast():
            pictures, texts, where, what, direct = forward(pixels, *texts)
        pictures, texts = (F.normalize(x.float(), dim=-1) for x in (pictures, texts))
        logits = clip.logit_scale.exp() * pictures @ texts.T  # batch, questions + captions
        whole, target = logits[:coloured, len(questions) :], torch.arange(coloured, device=DEVICE)
        loss = 0.25 * (F.cross_entropy(whole, target) + F.cross_entropy(whole.T, target))
        masks = F.one_hot(torch.from_numpy(classes[rows]).long(), 4)[..., 1:].permute(0, 3, 1, 2).float().to(DEVICE)
        share = F.adaptive_avg_pool2d(masks, where.shape[-2:])  # of each patch, B 3 8 8
        loss = loss + 5 * F.binary_cross_entropy_with_logits(where.float(), share)
        thing = torch.where(share[:, :2].amax(1) > 0.5, share[:, :2].argmax(1), 2).flatten(1)  # B 64; 2 is neither
        parts = what.split([sizes[name] for name in embedded.looks], 1)
        for part, (name, companion) in zip(parts, embedded.looks.items(), strict=True):
            part = part[:coloured] if name in embedded.colours else part
            subject, none = torch.from_numpy(words[name][rows])[: len(part)], part.shape[1]
            neither = torch.full_like(subject, none)
            beside = torch.from_numpy(words[companion][rows])[: len(part)] if companion else neither
            answers = torch.stack([subject, beside, neither], 1).clamp_max(none).to(DEVICE)
            answer = answers.gather(1, thing[: len(part)])
            loss = loss + 2 * F.cross_entropy(part.flatten(2).float(), answer, ignore_index=none)
        at = 0
        for name, n in sizes.items():
            answer = torch.from_numpy(words[name][rows]).to(DEVICE)
            if name in embedded.colours:
                answer[coloured:] = n  # no colour is asked of a grey image
            known = answer < n
            part = F.cross_entropy(logits[:, at : at + n][known], answer[known])
            part = part + F.cross_entropy(direct[:, at : at + n][known].float(), answer[known])
            loss, at = loss + part * (3 if name == next(iter(sizes)) else 1), at + n
        return loss

    loss = loop.run(loss_of)
    to = embedded.state / "published"
    clip.half().save_pretrained(to / "clip")
    tokenizer.save_pretrained(to / "clip")
    processor.save_pretrained(to / "clip")
    note(to, "clip", steps=loop.step, samples=loop.step * batch, loss=loss)


def train_segmenter(embedded: Embedded, steps: int, warm: bool = False, batch: int = 16) -> None:
    """Cross-entropy, plus the Dice loss of each part, so that small parts count; the first map has the image's size."""
    names = dict(enumerate(("background", *PARTS)))
    config = SegformerConfig(
        num_encoder_blocks=4,
        depths=[1, 1, 1, 1],
        sr_ratios=[8, 4, 2, 1],
        hidden_sizes=[16, 32, 64, 96],
        patch_sizes=[3, 3, 3, 3],
        strides=[1, 2, 2, 2],
        num_attention_heads=[1, 1, 2, 4],
        mlp_ratios=[2, 3, 3, 3],
        decoder_hidden_size=32,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        num_labels=4,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    model = SegformerForSemanticSegmentation(config)
    if warm:
        folder = embedded.published / "segmenter"
        model = SegformerForSemanticSegmentation.from_pretrained(folder, dtype=torch.float32)
    model = model.to(DEVICE)
    loop = Loop(embedded.state, "segmenter", steps, 1e-3 if warm else 2e-3, {"segmenter": model})
    forward = torch.compile(lambda pixels: model(pixel_values=pixels).logits, dynamic=False)
    _, _, images, classes = renders.load(embedded)

    def loss_of():
        rows = torch.randint(len(images), (batch,)).numpy()
        with autocast():
            logits = forward(as_pixels(images[rows])).float()  # B 4 SIZE SIZE
        true = torch.from_numpy(classes[rows]).long().to(DEVICE)
        guess, exact = logits.softmax(1)[:, 1:], F.one_hot(true, 4).permute(0, 3, 1, 2)[:, 1:].float()
        overlap, total = (2 * guess * exact).sum((0, 2, 3)), (guess + exact).sum((0, 2, 3))
        return F.cross_entropy(logits, true) + 0.2 * (1 - overlap / total.clamp_min(1)).mean()

    loss = loop.run(loss_of)
    to = embedded.state / "published"
    model.half().save_pretrained(to / "segmenter")
    size = {"height": SIZE, "width": SIZE}
    SegformerImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(to / "segmenter")
    note(to, "segmenter", steps=loop.step, samples=loop.step * batch, loss=loss)
