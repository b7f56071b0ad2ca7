"""Why `attend` does not use the fused kernel while training on a CPU: both ways side by side, as a ratio.

    python bench/attention.py

Prints, for the sizes of the scenes U-Net, the seconds of forward and backward by torch's fused kernel over those of
two matrix products: above 1 the matrix products win.
"""

import time

import torch
from torch.nn import functional as F

from ldm_tutor.nn.attention import attention_probs

SIZES = (("8x8 self", 64, 64, 32), ("8x8 cross", 64, 32, 32), ("4x4 self", 16, 16, 48), ("16x16 self", 256, 256, 16))


def seconds(work, q, k, v, rounds=8):
    times = []
    for _ in range(rounds):
        for tensor in (q, k, v):
            tensor.grad = None
        start = time.perf_counter()
        work(q, k, v).float().square().sum().backward()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def main():
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; fused / products, median of 8 rounds")
    for dtype in (torch.float32, torch.bfloat16):
        for name, n, m, d in SIZES:
            q, k, v = (torch.randn(64, 4, length, d).to(dtype).requires_grad_() for length in (n, m, m))
            products = seconds(lambda q, k, v: attention_probs(q, k).to(v.dtype) @ v, q, k, v)
            fused = seconds(F.scaled_dot_product_attention, q, k, v)
            print(f"{name:11} {str(dtype)[6:]:9} {fused / products:.2f}")


if __name__ == "__main__":
    main()
