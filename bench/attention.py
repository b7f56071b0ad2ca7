"""Why `attend` does not use the fused kernel while training on a CPU: both ways side by side, as a ratio.

    python bench/attention.py
    python bench/attention.py --cpu-time --threads 1     # on a machine that others use too

Prints, for the sizes of the scenes U-Net, the seconds of forward and backward by torch's fused kernel over those of
two matrix products: above 1 the matrix products win. The two take turns; medians, and the spread of the single ratios.
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional as F

from ldm_tutor.nn.attention import attention_probs

SIZES = (("8x8 self", 64, 64, 32), ("8x8 cross", 64, 32, 32), ("4x4 self", 16, 16, 48), ("16x16 self", 256, 256, 16))


def seconds(work, tensors, clock):
    for tensor in tensors:
        tensor.grad = None
    start = clock()
    work(*tensors).float().square().sum().backward()
    return clock() - start


def products(q, k, v):
    return attention_probs(q, k).to(v.dtype) @ v


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, help="by default torch's own choice")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's time for this process")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    about = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {clock.__name__}"
    print(f"{about}; fused / products, median of {options.rounds} rounds by turns (smallest to largest)")
    for dtype in (torch.float32, torch.bfloat16):
        for name, n, m, d in SIZES:
            tensors = [torch.randn(64, 4, length, d).to(dtype).requires_grad_() for length in (n, m, m)]
            times = {F.scaled_dot_product_attention: [], products: []}
            for turn in range(options.rounds + 1):  # the first warms up
                for work in list(times) if turn % 2 else list(times)[::-1]:
                    times[work].append(seconds(work, tensors, clock))
            fused, plain = (each[1:] for each in times.values())
            single = sorted(one / other for one, other in zip(fused, plain, strict=True))
            ratio = statistics.median(fused) / statistics.median(plain)
            print(f"{name:11} {str(dtype)[6:]:9} {ratio:.2f} ({single[0]:.2f} to {single[-1]:.2f})", flush=True)


if __name__ == "__main__":
    main()
