"""Draw renders.webp: 40 renders of training captions."""

from pathlib import Path

import numpy as np
import world
from PIL import Image

images, _, _ = world.render(world.sample(40, seed=3), seed=1)
tiles = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255).reshape(4, 10, 98, 98, 3)
sheet = Image.fromarray(tiles.transpose(0, 2, 1, 3, 4).reshape(4 * 98, 980, 3))
sheet.save(Path(__file__).with_name("renders.webp"), quality=90)
