"""Train the embedded models; every stage goes on where it stopped.

    python -m training vae --world emoji --steps 5000            # the autoencoder
    python -m training renders --world emoji --steps 65536       # training scenes, drawn once
    torchrun --nproc-per-node 2 -m training klein --world emoji --steps 60000
    torchrun --nproc-per-node 2 -m training klein --world emoji --steps 60000 --warm  # from the published weights
    python -m training clip --world emoji --steps 3600           # evaluator: what a picture shows, word by word
    python -m training segmenter --world emoji --steps 3000      # evaluator: subject, companion and shadow
    python -m training evaluate --world emoji                    # what they achieve, for the card
    python -m training prompts                                   # ToyWorld's prompt sets
    python -m training sprites --folder FOLDER                   # EmojiWorld's drawings
    python -m training origins --help                            # the small trainings of notebook 05

Two processes with a thread each train 1.5 times as fast as one with two threads. A stage's state lies in the folder
MASSACT_TRAINING, by default runs/<world>, its result in published/ under it.
"""

import argparse
import sys
from pathlib import Path


def main() -> None:
    """One stage of one world's training."""
    if sys.argv[1:2] == ["origins"]:
        from .origins import train

        return train.main(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("stage", choices=("vae", "renders", "klein", "clip", "segmenter", "evaluate", "prompts", "sprites", "origins"))
    add("--world", choices=("toy", "emoji"), default="toy")
    add("--steps", type=int, help="planned steps of the stage over all its runs; of renders, scenes at full size")
    add("--seed", type=int, default=0, help="of klein: another training, whose channels alone are recorded")
    add("--warm", action="store_true", help="start from the published weights")
    add("--folder", type=Path, help="of sprites: where sprites.png and names.csv lie")
    args = parser.parse_args()
    if args.stage == "sprites":
        from . import sprites

        return sprites.make(args.folder)
    if args.stage == "prompts":
        from . import prompts

        return prompts.make()
    if args.stage == "evaluate":
        from . import evaluate

        return evaluate.make(args.world)
    from . import evaluators, klein, loop, renders

    embedded = renders.EMBEDDED[args.world]
    loop.begin(args.seed)
    if args.stage == "renders":
        for kind, n in (("simple", klein.N_COARSE), ("coarse", klein.N_COARSE), ("full", args.steps)):
            if n and (kind == "full" or not args.warm):
                renders.draw(embedded, kind, n)
    elif args.stage == "klein":
        klein.train_klein(embedded, args.steps, args.warm, args.seed)
    else:
        stages = {"vae": klein.train_vae, "clip": evaluators.train_clip, "segmenter": evaluators.train_segmenter}
        stages[args.stage](embedded, args.steps, args.warm)


if __name__ == "__main__":
    main()
