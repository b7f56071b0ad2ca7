"""The axis legend. Annotations use these letters everywhere, and the tests check them at run time.

b  batch (pictures, sentences)          h w    height and width of a feature map
c  channels of a feature map            H W    height and width of a picture in pixels
n  query tokens (h * w, or words)       m      key tokens (words of the context, or n itself)
d  width of a token vector              heads  attention heads, each of width d / heads
"""

from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

Pictures = Float[Tensor, "b 3 H W"]  # in [-1, 1]
Latents = Float[Tensor, "b c h w"]  # about unit standard deviation once scaled
FeatureMap = Float[Tensor, "b c h w"]
Tokens = Int[Tensor, "b n"]
Context = Float[Tensor, "b m d_context"]
Steps = Int[Tensor, " b"]  # time step of each batch row, 0 (almost clean) to num_steps - 1 (almost noise)
Times = Num[Tensor, " b"]  # the same where a model reads it: some samplers ask between two steps

__all__ = ["Bool", "Context", "FeatureMap", "Float", "Int", "Latents", "Pictures", "Steps", "Tensor", "Times", "Tokens"]
