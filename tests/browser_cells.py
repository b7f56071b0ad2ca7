"""What tests/test_browser.py opens in the browser: small notebooks, and the same objects for what they must show.

The kernel and the test both import this file, so the test knows every picture before the browser shows it.
"""

import numpy as np
import torch
from tiny import make_pipeline
from tiny_steered import make_steered  # noqa: F401  for the cells

from ldm_tutor.data.boxes import Box
from ldm_tutor.data.scenes.world import Scene, SceneObject
from ldm_tutor.plots.figures import bars
from ldm_tutor.widgets.attention import AttentionExplorer, record_scene
from ldm_tutor.widgets.guidance import GuidanceGrid
from ldm_tutor.widgets.similarity import SimilarityExplorer

SENTENCE = "a red cat and a blue house"
SCENE = Scene(
    objects=(SceneObject.put("cat", "red", "large", "left"), SceneObject.put("house", "blue", "medium", "right")),
    background="day",
)
CAPTIONS = ["a red cat", "a blue dog", "a green tree", "a white ball"]
SEEDS, SCALES = [7, 8, 9], [0, 1, 4, 8]
NUM_FRAMES = 6
BOXES = [Box("house", 0.125, 0.25, 0.5, 0.75), Box("tree", 0.625, 0.25, 0.875, 0.75)]


def square(level, tint, bright, unused):
    """A square whose colour says where the controls stand; `unused` is the control that must not change it."""
    pixels = np.full((8, 8, 3), level, np.uint8)
    pixels[..., 2] = {"none": 0, "blue": 255}[tint]
    return pixels | 1 if bright else pixels


def stop_at_200(level):
    """A figure that fails beyond 200."""
    if level > 200:
        raise ValueError("too bright")
    return np.full((8, 8), level, np.uint8)


def frame(number):
    return np.full((8, 8), 40 * number, np.uint8)


def colored():
    """Four pictures that differ at a glance."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(4, 3, 1, 1, generator=generator) * 2 - 1).expand(4, 3, 64, 64)


def cosines():
    return torch.rand(4, 4, generator=torch.Generator().manual_seed(1))


def grid_pictures():
    levels = torch.arange(24.0).view(2, 3, 4, 1, 1, 1) / 12 - 1
    return levels.expand(2, 3, 4, 3, 64, 64)


def similarity():
    return SimilarityExplorer(colored(), CAPTIONS, cosines())


def guidance():
    return GuidanceGrid(grid_pictures(), CAPTIONS[:2], SEEDS, SCALES)


def attention():
    return AttentionExplorer(record_scene(make_pipeline(), SCENE, SENTENCE, 1, num_steps=3))


def gradient():
    """A picture (1, 3, 64, 64) to paint a hole on: every pixel has its own colour."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return (torch.stack([4 * rows, 4 * columns, 128 + 0 * rows])[None] / 127.5 - 1).float()


def first_hole():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 8:24, 40:56] = 1
    return mask


def chart(level):
    return bars(["level"], [level])


SETUP = """
import ipywidgets
import torch
from browser_cells import *
from ldm_tutor.widgets.attention import attention_explorer
from ldm_tutor.widgets.bill import bill_explorer
from ldm_tutor.widgets.boxes import draw_boxes
from ldm_tutor.widgets.budget import budget_explorer
from ldm_tutor.widgets.edit_studio import edit_studio
from ldm_tutor.widgets.guidance import guidance_grid
from ldm_tutor.widgets.hole import paint_hole
from ldm_tutor.widgets.live import frames, live
from ldm_tutor.widgets.similarity import similarity_explorer
from ldm_tutor.widgets.studio import scene_studio
torch.set_num_threads(2)
pipe = make_pipeline()
"""
CELLS = {
    "live": "live(square, 'a square', level=(0, 255, 10), tint=['none', 'blue'], bright=ipywidgets.Checkbox("
    "description='bright', indent=False), unused=(0, 9, 3))",
    "failing": "live(stop_at_200, 'a square', level=(0, 255, 200, 5))",
    "frames": "frames([frame(k) for k in range(NUM_FRAMES)], 'darker to lighter', start=0, milliseconds=60)",
    "similarity": "similarity_explorer(colored(), CAPTIONS, cosines(), 'a matrix', start=1)",
    "guidance": "guidance_grid(grid_pictures(), CAPTIONS[:2], SEEDS, SCALES, 'a grid', start=(0, 1, 2))",
    "attention": "attention_explorer(pipe, SENTENCE, 1, scene=SCENE, num_steps=3)",
    "studio": "scene_studio(pipe, 'a red cat', seed=7)",
    "edit_studio": "edit_studio(pipe, 'a red cat', 'a large blue boat on the beach and a tree', seed=7)",
    "budget": "budget_explorer(1e12, 'a budget')",
    "bill": "bill_explorer('a bill')",
    "boxes": "draw_boxes(make_steered('layout', pipe), BOXES)",
    "hole": "paint_hole(make_steered('inpainting', pipe), gradient(), first_hole(), '')",
}
ASLEEP = {"live": "import numpy as np\nfrom ldm_tutor.widgets.live import live\n"
          "live(lambda level: np.full((8, 8), level, np.uint8), 'a grey square', level=(0, 255, 10))"}  # fmt: skip
