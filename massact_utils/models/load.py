"""Models: loading a pipeline by name, and generating with it so that a row's noise depends on its seed alone."""

import inspect
import re
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from .. import places
from . import progress
from .families import CHAT_TEMPLATES
from .memory import check_room

TOY = places.data("toy", "klein")

TOY_CALL = dict(num_inference_steps=16, guidance_scale=3.0, height=96, width=96, max_sequence_length=30)
MEGAPIXEL = dict(height=1024, width=1024)

# name -> (Hub id or folder, what the pipeline is called with, as the model's card advises)
KNOWN = {
    "toy": (TOY, TOY_CALL | {"text_encoder_out_layers": (1, 2, 3)}),
    "flux.1-dev": ("black-forest-labs/FLUX.1-dev", MEGAPIXEL | dict(num_inference_steps=28, guidance_scale=3.5)),
    "flux.1-schnell": (
        "black-forest-labs/FLUX.1-schnell",
        MEGAPIXEL | dict(num_inference_steps=4, guidance_scale=0.0, max_sequence_length=256),
    ),
    "flux.2-klein-4b": (
        "black-forest-labs/FLUX.2-klein-4B",
        MEGAPIXEL | dict(num_inference_steps=4, guidance_scale=1.0),
    ),
    "flux.2-klein-9b": (
        "black-forest-labs/FLUX.2-klein-9B",
        MEGAPIXEL | dict(num_inference_steps=4, guidance_scale=1.0),
    ),
    "qwen-image": (
        "Qwen/Qwen-Image",
        dict(height=1328, width=1328, num_inference_steps=50, true_cfg_scale=4.0, negative_prompt=" "),
    ),
    "sana-1.5-1.6b": (
        "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
        MEGAPIXEL | dict(num_inference_steps=20, guidance_scale=4.5),
    ),
    "sana-1.5-4.8b": (
        "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
        MEGAPIXEL | dict(num_inference_steps=20, guidance_scale=4.5),
    ),
    "sd3.5-medium": (
        "stabilityai/stable-diffusion-3.5-medium",
        MEGAPIXEL | dict(num_inference_steps=40, guidance_scale=4.5),
    ),
    "sd3.5-large": (
        "stabilityai/stable-diffusion-3.5-large",
        MEGAPIXEL | dict(num_inference_steps=28, guidance_scale=3.5),
    ),
    "pixart-sigma": (
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        MEGAPIXEL | dict(num_inference_steps=20, guidance_scale=4.5),
    ),
    "z-image-turbo": ("Tongyi-MAI/Z-Image-Turbo", MEGAPIXEL | dict(num_inference_steps=8, guidance_scale=0.0)),
}
# Known models whose float16 diffusers clips at 65,504, massive activations first, or that were trained in bfloat16.
NEEDS_RANGE = ("toy", "flux.1", "flux.2", "qwen-image", "sana", "z-image")
OFFLOAD = ("model", "sequential", "group")
MODULAR = (
    "is a modular pipeline, which `load` does not know; make it with diffusers.ModularPipeline.from_pretrained(...), "
    "call its load_components(...), and give it to `attach`"
)


def load(name="toy", *, revision=None, device=None, dtype=None, offload=None):
    """A diffusers pipeline, unpatched, by a known name, a Hub id or a local folder; weights from safetensors only.

    `device` is cuda where there is one, else cpu; `dtype` (a torch.dtype or its name) bfloat16 on cuda, float32 on cpu.
    A GPU without bfloat16 of its own, such as Colab's T4, gets float16, or float32 where its range is too small for
    the model (NEEDS_RANGE), and `load` prints which. `offload` keeps weights on the host and brings them in as needed:
    "model", "sequential" or "group" (needs an accelerator). An empty `device`, `dtype` or `offload` is none given.

    Raises ValueError for an unknown name, dtype or offload, FileNotFoundError for a folder that is not a pipeline with
    safetensors, and RuntimeError, with the reason, for a model that the Hub does not hand over, whose files are damaged
    or whose weights are larger than the GPU.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or _best_dtype(str(name), torch.device(device))
    given, dtype = dtype, getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype {given!r} is unknown; allowed: 'bfloat16', 'float32', 'float16' or a torch.dtype")
    if offload and offload not in OFFLOAD:
        raise ValueError(f"offload {offload!r} is unknown; allowed: {', '.join(OFFLOAD)}, or None")
    where = _resolve(str(name))
    options = dict(revision=revision, torch_dtype=dtype, use_safetensors=True)
    with quiet(isinstance(where, Path)):
        if isinstance(where, Path):
            pipe = _from_folder(where, options)
        else:
            pipe = _from_hub(where, options)
    check_room(pipe, device, offload)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        pipe.enable_group_offload(
            onload_device=torch.device(device), offload_type="leaf_level", use_stream=torch.cuda.is_available()
        )
    else:
        pipe.to(device)
    return pipe


def _resolve(name: str) -> Path | str:
    """A checked local folder (Path) or a Hub id (str)."""
    where = KNOWN.get(name, (name,))[0]
    folder = Path(where).expanduser()
    if name == "toy" and not folder.exists():
        raise FileNotFoundError(f"the embedded model is not there ({folder}); make it with: python -m training klein")
    if folder.is_dir():
        if not (folder / "model_index.json").is_file() and (folder / "modular_model_index.json").is_file():
            raise FileNotFoundError(f"{name!r} {MODULAR}")
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"{name!r} is a folder without model_index.json, so not a diffusers pipeline")
        if not any(folder.glob("*/*.safetensors")):
            raise FileNotFoundError(
                f"{name!r} holds no *.safetensors; save it again with save_pretrained(..., safe_serialization=True)"
            )
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(where)):
        raise ValueError(
            f"model {name!r} is no known name, no folder and no Hub id (owner/name); known: {', '.join(KNOWN)}"
        )
    return str(where)


def _best_dtype(name: str, device) -> torch.dtype:
    """The dtype that a device computes by itself and in which a model does not overflow."""
    if device.type != "cuda":
        return torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    wide = name.startswith(NEEDS_RANGE)
    why = "float16 would clip this model's largest activations" if wide else "if values overflow, try dtype='float32'"
    print(f"{torch.cuda.get_device_name(device)} has no bfloat16: {'float32' if wide else 'float16'} is taken; {why}")
    return torch.float32 if wide else torch.float16


def _from_folder(folder: Path, options: dict):
    """Load a local pipeline; a file that does not read is named."""
    try:
        return DiffusionPipeline.from_pretrained(str(folder), **options)
    except (OSError, ValueError, SafetensorError) as error:
        for file in sorted(folder.glob("*/*.safetensors")):
            try:
                with safe_open(file, "pt"):
                    pass
            except SafetensorError as broken:
                raise RuntimeError(
                    f"{file.relative_to(folder)} of the model at {folder} is damaged ({broken}); download or install "
                    "it again"
                ) from error
        raise


def _from_hub(name: str, options: dict):
    """Load from the Hub: say how much there is to load, and in plain words what went wrong."""
    try:
        files = HfApi().model_info(name, revision=options["revision"], files_metadata=True, timeout=10).siblings
        weights = sum(f.size or 0 for f in files if f.rfilename.endswith(".safetensors") and "/" in f.rfilename)
        print(f"{name}: {weights / 1e9:.1f} GB of weights; what is not in the local cache is downloaded now")
        names = {f.rfilename for f in files}
        modular = "modular_model_index.json" in names and "model_index.json" not in names
    except Exception:  # the loading itself tells what is wrong
        modular = False
    if modular:
        raise RuntimeError(f"{name!r} {MODULAR}")
    try:
        return DiffusionPipeline.from_pretrained(name, **options)
    except OSError as error:
        causes, cause = [], error
        while cause is not None:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        known = (
            (GatedRepoError, f"it is gated: accept its terms at https://huggingface.co/{name} and run `hf auth login`"),
            (RevisionNotFoundError, f"it has no revision {options['revision']!r}"),
            (RepositoryNotFoundError, "the Hub knows no such model, or it is private"),
            (ConnectionError, "the Hub cannot be reached, and the model is not in the local cache"),
        )
        network = any(word in type(cause).__name__ for cause in causes for word in ("Connect", "Timeout", "Offline"))
        reasons = [why for kind, why in known for cause in causes if isinstance(cause, kind)]
        reason = reasons[0] if reasons else known[3][1] if network else str(error)
        raise RuntimeError(f"model {name!r} was not loaded: {reason}") from error


@contextmanager
def quiet(local: bool):
    """No progress bars while a local folder loads; downloads keep theirs."""
    loggers = [log for log in (diffusers_logging, transformers_logging) if local and log.is_progress_bar_enabled()]
    for log in loggers:
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype.* is deprecated")  # old diffusers know no `dtype`
            yield
    finally:
        for log in loggers:
            log.enable_progress_bar()


def defaults(pipe) -> dict:
    """The call defaults of a known model, found by the id or folder a pipeline was loaded from; {} for any other."""
    origin = str(getattr(pipe, "name_or_path", None) or pipe.config.get("_name_or_path") or "")
    return next((dict(call) for where, call in KNOWN.values() if origin == str(where)), {})


def generate(pipe, prompts, *, seeds=0, **call) -> list:
    """Images of one prompt or many: list[PIL.Image]; row i's noise is drawn on the CPU from seeds[i] alone.

    An int is seed + position, as in `Run`, so that no two rows share their noise; a list gives each row its own seed.
    `call` goes to the pipeline over the known model's defaults (steps, guidance, size). Raises ValueError, before
    anything is generated, for an empty list, an empty prompt, a prompt the tokenizer would cut, seeds of another
    length; TypeError for call arguments the pipeline does not take and for prompts that are not text.
    """
    prompts = [prompts] if isinstance(prompts, (str, int)) else list(prompts)
    accepted = inspect.signature(type(pipe).__call__).parameters
    target = next((name for name in ("prompt", "class_labels") if name in accepted), None)
    unknown = sorted(set(call) - set(accepted) | set(call) & {target, "generator", "num_images_per_prompt"})
    if unknown:
        taken = sorted(set(accepted) - {"self", target, "generator", "num_images_per_prompt"})
        raise TypeError(
            f"{type(pipe).__name__} cannot be called with {', '.join(unknown)} here; allowed: {', '.join(taken)}; "
            "the noise is chosen by seeds, and several images of a prompt by repeating it"
        )
    if not prompts:
        raise ValueError("no prompts to generate from; give one or a list of them")
    wrong = [p for p in prompts if not isinstance(p, str if target == "prompt" else int)]
    if wrong:
        raise TypeError(f"prompt {wrong[0]!r} is not {'text' if target == 'prompt' else 'a class label (int)'}")
    seeds = [seeds + i for i in range(len(prompts))] if isinstance(seeds, int) else list(seeds)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give the first seed, or one for each")
    call = {name: value for name, value in defaults(pipe).items() if name in accepted} | call
    if target == "prompt":
        check_lengths(
            pipe,
            prompts,
            call.get("max_sequence_length", getattr(accepted.get("max_sequence_length"), "default", None)),
        )
    for name in ("negative_prompt", "negative_prompt_2", "negative_prompt_3"):
        if isinstance(call.get(name), str):
            call[name] = [call[name]] * len(prompts)
    made = quietly(pipe, seeds, **{target: prompts}, **call)
    return list(made.images if hasattr(made, "images") else made.frames)


def quietly(pipe, seeds, **call):
    """A pipeline's own output, each row's noise from its seed on the CPU; no progress bar unless the user set one."""
    generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
    with progress.reported(pipe, len(generators)):
        return pipe(generator=generators, **call)


def check_lengths(pipe, prompts, limit: int | None) -> None:
    """Raise ValueError for an empty prompt, or one longer in tokens, chat template included, than the pipeline's
    limit.
    """
    empty = [i for i, prompt in enumerate(prompts) if not prompt.strip()]
    if empty:
        raise ValueError(f"prompt {empty[0]} is empty; give it some words")
    tokenizer = next(
        (t for t in (getattr(pipe, f"tokenizer{n}", None) for n in ("_4", "_3", "_2", "")) if t is not None), None
    )
    limit = limit or getattr(tokenizer, "model_max_length", None)
    if limit is None or not callable(getattr(tokenizer, "tokenize", None)):
        return
    for prompt in prompts:
        text, thinking = prompt, CHAT_TEMPLATES.get(type(getattr(pipe, "transformer", None)).__name__)
        if thinking is not None:
            options = dict(tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
            text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], **options)
        n = len(tokenizer(text, truncation=False)["input_ids"])
        if n > limit:
            raise ValueError(
                f"prompt {prompt!r} has {n} tokens, over max_sequence_length = {limit}; shorten it or raise the limit"
            )
