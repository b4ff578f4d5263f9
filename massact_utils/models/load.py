"""Models: loading a pipeline by name, and generating with it so that a row's noise depends on its seed alone."""

import inspect
import json
import logging
import re
import warnings
from contextlib import ExitStack, contextmanager
from itertools import chain
from operator import index
from pathlib import Path
from typing import NamedTuple

import torch

from .. import places
from ..ranges import CALL, check
from . import progress
from .families import CHAT_TEMPLATES


def _call(pixels: int, steps: int, **more) -> dict:
    return dict(height=pixels, width=pixels, num_inference_steps=steps, **more)


class Known(NamedTuple):
    """A known model: a Hub id or folder, what its pipeline is called with, as its card advises, and what notebooks take
    where they are not told: prompts (and pairs), the CLIP that reads, the segmentation model that marks the subject,
    steps (0: the model's own) and images at once (0: all arms of a prompt).
    """

    where: Path | str
    call: dict
    prompts: str = "everyday"
    evaluator: str = "openai/clip-vit-large-patch14"
    reference: str = "ZhengPeng7/BiRefNet"
    steps: int = 0
    at_once: int = 16


def _embedded(name: str, max_sequence_length: int, **more) -> Known:
    call = _call(96, 16, guidance_scale=3.0, max_sequence_length=max_sequence_length, text_encoder_out_layers=(1, 2, 3))
    return Known(places.data(name, "klein"), call, f"{name}world", name, name, at_once=0, **more)


KNOWN = {
    "toy": _embedded("toy", max_sequence_length=30, steps=4),
    "emoji": _embedded("emoji", max_sequence_length=26),
    "flux.1-dev": Known("black-forest-labs/FLUX.1-dev", _call(1024, 28, guidance_scale=3.5)),
    "flux.1-schnell": Known(
        "black-forest-labs/FLUX.1-schnell", _call(1024, 4, guidance_scale=0, max_sequence_length=256)
    ),
    "flux.2-klein-4b": Known("black-forest-labs/FLUX.2-klein-4B", _call(1024, 4, guidance_scale=1.0)),
    "flux.2-klein-9b": Known("black-forest-labs/FLUX.2-klein-9B", _call(1024, 4, guidance_scale=1.0)),
    "qwen-image": Known("Qwen/Qwen-Image", _call(1328, 50, true_cfg_scale=4.0, negative_prompt=" ")),
    "sana-1.5-1.6b": Known("Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers", _call(1024, 20, guidance_scale=4.5)),
    "sana-1.5-4.8b": Known("Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers", _call(1024, 20, guidance_scale=4.5)),
    "sd3.5-medium": Known("stabilityai/stable-diffusion-3.5-medium", _call(1024, 40, guidance_scale=4.5)),
    "sd3.5-large": Known("stabilityai/stable-diffusion-3.5-large", _call(1024, 28, guidance_scale=3.5)),
    "pixart-sigma": Known("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", _call(1024, 20, guidance_scale=4.5)),
    "z-image-turbo": Known("Tongyi-MAI/Z-Image-Turbo", _call(1024, 8, guidance_scale=0.0)),
}
# Classes whose float16 diffusers clips at 65,504, massive activations first, or that were trained in bfloat16.
NEEDS_RANGE = ("Flux", "Flux2", "QwenImage", "Sana", "ZImage")


def load(name="toy", *, revision=None, variant=None, device=None, dtype=None, offload=None):
    """A diffusers pipeline, unpatched, by a known name, a Hub id or a local folder; weights from safetensors only.

    `device` is cuda where there is one, else cpu; `dtype` (a torch.dtype or its name) bfloat16 on cuda, float32 on cpu.
    A GPU without bfloat16 of its own, such as Colab's T4, gets float16, or float32 where its range is too small for
    the model (NEEDS_RANGE), and `load` prints which. `variant` is that of the files, such as "fp16". `offload` keeps
    weights on the host and brings them in as needed: "model", "sequential" or "group" (needs an accelerator).

    Raises ValueError for an unknown name, dtype or offload, and RuntimeError for weights that do not fit their classes
    or the GPU; for files that are missing or damaged, what diffusers raises (OSError).
    """
    from diffusers import DiffusionPipeline  # seconds, which a bare import does not take

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    given, dtype = dtype, getattr(torch, dtype, None) if isinstance(dtype, str) and dtype else dtype
    if given and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype {given!r} is unknown; allowed: 'bfloat16', 'float32', 'float16' or a torch.dtype")
    if offload:
        check(offload=offload)
    if wrong := [given for given in (revision, variant) if not (given is None or isinstance(given, str))]:
        raise ValueError(f"{wrong[0]!r} is no revision or variant; give a name, as in variant='fp16'")
    where = _resolve(str(name))
    if not dtype:
        parts = DiffusionPipeline.load_config(where, revision=revision)
        dtype = _best_dtype(parts.get("transformer", ["", ""])[1] or "", torch.device(device))
    options = dict(revision=revision, variant=variant, torch_dtype=dtype, use_safetensors=True)
    with quiet(isinstance(where, Path)), _reports() as reports:
        pipe = DiffusionPipeline.from_pretrained(where, **options)
    if reports:
        raise RuntimeError(f"the weights of {name!r} do not fit its classes; download it again:\n{reports[0]}")
    check_room(pipe, device, offload)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        stream = torch.cuda.is_available()
        pipe.enable_group_offload(onload_device=torch.device(device), offload_type="leaf_level", use_stream=stream)
    else:
        pipe.to(device)
    return pipe


def settings(name: str) -> Known:
    """What notebooks take for a model where they are not told: a known name's row, and for a Hub id or folder the
    defaults of `Known`.

    >>> settings("toy").prompts, settings("my/model").prompts
    ('toyworld', 'everyday')
    """
    return KNOWN.get(name) or Known(name, {})


def _resolve(name: str) -> Path | str:
    """A local folder (Path) or a Hub id (str)."""
    where = settings(name).where
    folder = Path(where).expanduser()
    if name and folder.is_dir() and (name not in KNOWN or (folder / "model_index.json").exists()):
        record = folder.parent / "training.json"
        if name in KNOWN and record.is_file():
            done = json.loads(record.read_text())["klein"]
            if done["steps"] < done.get("planned", 0):
                at = f"step {done['steps']:,} of {done['planned']:,}"
                warnings.warn(f"{name!r} is in training, at {at}: it does not draw yet what it is asked", stacklevel=3)
        return folder
    if isinstance(where, Path):
        raise FileNotFoundError(
            f"the embedded model is not there ({where}); make it with: python -m training klein --world {name}"
        )
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", where):
        known = ", ".join(KNOWN)
        raise ValueError(f"model {name!r} is no known name, no folder and no Hub id (owner/name); known: {known}")
    return where


def _best_dtype(transformer: str, device) -> torch.dtype:
    """The dtype that a device computes by itself and in which a class of transformers does not overflow."""
    if device.type != "cuda":
        return torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    wide = transformer in {f"{family}Transformer2DModel" for family in NEEDS_RANGE}
    why = "float16 would clip this model's largest activations" if wide else "if values overflow, try dtype='float32'"
    print(f"{torch.cuda.get_device_name(device)} has no bfloat16: {'float32' if wide else 'float16'} is taken; {why}")
    return torch.float32 if wide else torch.float16


def weight_bytes(pipe) -> dict[str, int]:
    """Bytes of the weights of a pipeline's components, the largest first."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    sizes = {name: sum(map(tensor_bytes, [*part.parameters(), *part.buffers()])) for name, part in parts.items()}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def tensor_bytes(x: torch.Tensor) -> int:
    """Bytes of a tensor, and of a quantised one those of the tensors inside, not of the original."""
    if hasattr(x, "__tensor_flatten__"):
        return sum(tensor_bytes(getattr(x, name)) for name in x.__tensor_flatten__()[0])
    return x.nbytes


def format_bytes(n: float) -> str:
    """Bytes to three digits.

    >>> format_bytes(1_234_567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB"):
        if n < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB" if n < 999.5 else f"{n / 1000:.3g} TB"


def check_room(pipe, device, offload: str | None = None) -> None:
    """Raise RuntimeError, with what would fit, for weights that are larger than the GPU they go to."""
    device = torch.device(device)
    if device.type != "cuda" or offload in ("group", "sequential"):
        return
    room, sizes = torch.cuda.get_device_properties(device).total_memory, [*weight_bytes(pipe).values()]
    needed = sizes[0] if offload else sum(sizes)
    if needed > room:
        fits = "'model' or 'group'" if sizes[0] <= room and not offload else "'group'"
        raise RuntimeError(
            f"{format_bytes(needed)} of weights are more than the GPU's {format_bytes(room)}; load with offload={fits}"
        )


@contextmanager
def quiet(local: bool):
    """No progress bars while a local folder loads; downloads keep theirs."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    loggers = [log for log in (of_diffusers, of_transformers) if local and log.is_progress_bar_enabled()]
    for log in loggers:
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype.* is deprecated")  # old diffusers know no `dtype`
            yield
    finally:
        for log in loggers:
            log.enable_progress_bar()


@contextmanager
def _reports():
    """Inside, a list of what the libraries report of weights that are missing, or that no part takes."""
    reports, handler = [], logging.Handler(logging.WARNING)
    words = re.compile("newly initialized|not used when initializing|MISSING|MISMATCH")
    handler.emit = lambda record: words.search(record.getMessage()) and reports.append(record.getMessage())
    with ExitStack() as stack:
        for logger in map(logging.getLogger, ("diffusers", "transformers")):
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
        yield reports


def defaults(pipe) -> dict:
    """The call defaults of a known model, found by the id or folder a pipeline was loaded from; {} for any other.

    Any pipeline of an embedded model's configuration, such as a copy in another folder, has that model's own.
    """
    origin = str(getattr(pipe, "name_or_path", None) or pipe.config.get("_name_or_path") or "")
    named = (call for where, call, *_ in KNOWN.values() if origin == str(where))
    alike = (call for where, call, *_ in KNOWN.values() if isinstance(where, Path) and _alike(pipe, where))
    return dict(next(chain(named, alike), {}))


def _alike(pipe, folder: Path) -> bool:
    """Whether a pipeline's transformer has the configuration of one in a folder, and its text encoder as many words."""
    files = [folder / part / "config.json" for part in ("transformer", "text_encoder")]
    if not all(file.is_file() for file in files):
        return False
    wanted, words = (json.loads(file.read_text()) for file in files)
    wanted = {name: value for name, value in wanted.items() if not name.startswith("_")}
    own = getattr(getattr(pipe, "transformer", None), "config", {})
    same = getattr(getattr(getattr(pipe, "text_encoder", None), "config", None), "vocab_size", 0) == words["vocab_size"]
    return same and wanted == json.loads(json.dumps({name: own.get(name) for name in wanted}, default=str))


def generate(pipe, prompts, *, seeds=0, **call) -> list:
    """Images of one prompt or many: list[PIL.Image]; row i's noise is drawn on the CPU from seeds[i] alone.

    An int is seed + position, as in `Run`, so that no two rows share their noise; a list gives each row its own seed.
    `call` goes to the pipeline over the known model's defaults (steps, guidance, size). Raises ValueError, before
    anything is generated, for an empty list, an empty prompt, a prompt the tokenizer would cut, seeds of another
    length; TypeError for prompts that are not text, and for call arguments the pipeline does not take.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    target = next((name for name in ("prompt", "class_labels") if name in accepted), None)
    if target is None:
        raise TypeError(f"{type(pipe).__name__} takes no prompts; give a pipeline, as from mu.load()")
    if isinstance(prompts, dict) or hasattr(prompts, "columns"):
        raise TypeError(f"prompts in a {type(prompts).__name__}; give a text, or a list of them such as its column")
    prompts = [prompts] if isinstance(prompts, (str, int)) else list(() if prompts is None else prompts)
    if not prompts:
        raise ValueError("no prompts to generate from; give one or a list of them")
    wrong = [p for p in prompts if not isinstance(p, str if target == "prompt" else int)]
    if wrong:
        raise TypeError(f"prompt {wrong[0]!r} is not {'text' if target == 'prompt' else 'a class label (int)'}")
    seeds = spread_seeds(seeds, len(prompts))
    call = {name: value for name, value in defaults(pipe).items() if name in accepted} | call
    unset = {name for name in call if call[name] is None and accepted.get(name) and accepted[name].default is None}
    check(**{name: value for name, value in call.items() if name in CALL.keys() - unset})
    if target == "prompt":
        usual = getattr(accepted.get("max_sequence_length"), "default", None)
        check_lengths(pipe, prompts, call.get("max_sequence_length", usual))
    for name in ("negative_prompt", "negative_prompt_2", "negative_prompt_3"):
        if isinstance(call.get(name), str):
            call[name] = [call[name]] * len(prompts)
    made = quietly(pipe, seeds, **{target: prompts}, **call)
    return list(made.images if hasattr(made, "images") else made.frames)


def spread_seeds(seeds, n: int) -> list[int]:
    """A seed for each of n rows: an integer, NumPy's too, is the first of consecutive ones.

    Raises ValueError for another number of seeds and for what is no seed, TypeError for neither a list nor a number.

    >>> spread_seeds(3, 2)
    [3, 4]
    """
    if hasattr(seeds, "__index__") and not getattr(seeds, "ndim", 0):
        check(seed=seeds)
        seeds = [index(seeds) + i for i in range(n)]
    elif isinstance(seeds, str) or not hasattr(seeds, "__len__"):
        raise TypeError(f"seeds = {seeds!r} are no integers; give the first seed, or one for each row")
    seeds = list(seeds)
    if len(seeds) != n:
        raise ValueError(f"{len(seeds)} seeds for {n} prompts; give the first seed, or one for each")
    for seed in seeds:
        check(seed=seed)
    return [*map(index, seeds)]


def quietly(pipe, seeds, **call):
    """A pipeline's own output, each row's noise from its seed on the CPU."""
    generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
    with progress.steps(pipe, len(generators), call.get("prompt", "")):
        return pipe(generator=generators, **call)


def check_lengths(pipe, prompts, limit: int | None) -> None:
    """Raise ValueError for an empty prompt, or one of more tokens, chat template included, than the pipeline takes."""
    empty = [i for i, prompt in enumerate(prompts) if not prompt.strip()]
    if empty:
        raise ValueError(f"prompt {empty[0]} is empty; give it some words")
    tokenizers = (getattr(pipe, f"tokenizer{n}", None) for n in ("_4", "_3", "_2", ""))
    tokenizer = next((t for t in tokenizers if t is not None), None)
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
                f"prompt {prompt!r:.99} has {n} tokens, over max_sequence_length = {limit}; shorten it or raise that"
            )
