"""Why `attend` leaves the fused kernel on a CPU: both ways side by side, as a ratio.

    python bench/attention.py
    python bench/attention.py --cpu-time --threads 1     # on a machine that others use too

Prints, for the sizes of the scenes U-Net in training (forward and backward), and for those of Stable Diffusion's U-Net
without gradients, the seconds of torch's fused kernel over those of matrix products: above 1 the products win, which
`attend` takes there: of whole maps in training, of pieces without gradients. The two take turns; medians, and the
spread of the single ratios.
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional as F

from ldm_tutor.nn.attention import attend_in_pieces, attention_probs

TRAINED = (("8x8 self", 64, 64, 32), ("8x8 cross", 64, 32, 32), ("4x4 self", 16, 16, 48), ("16x16 self", 256, 256, 16))
DRAWN = (
    ("64x64 self", 4096, 4096, 40),
    ("64x64 cross", 4096, 77, 40),
    ("32x32 self", 1024, 1024, 80),
    ("32x32 cross", 1024, 77, 80),
    ("16x16 self", 256, 256, 160),
    ("8x8 self", 64, 64, 160),
)


def products(q, k, v):
    return attention_probs(q, k).to(v.dtype) @ v


def trained(work, tensors):
    for tensor in tensors:
        tensor.grad = None
    work(*tensors).float().square().sum().backward()


@torch.inference_mode()
def drawn(work, tensors):
    work(*tensors)


def compare(name, dtype, ways, run, tensors, rounds, clock):
    times = {work: [] for work in ways}
    for turn in range(rounds + 1):  # the first warms up
        for work in ways if turn % 2 else ways[::-1]:
            start = clock()
            run(work, tensors)
            times[work].append(clock() - start)
    fused, plain = (each[1:] for each in times.values())
    single = sorted(one / other for one, other in zip(fused, plain, strict=True))
    ratio = statistics.median(fused) / statistics.median(plain)
    print(f"{name:12} {str(dtype)[6:]:9} {ratio:.2f} ({single[0]:.2f} to {single[-1]:.2f})", flush=True)


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
    fused = F.scaled_dot_product_attention
    for dtype in (torch.float32, torch.bfloat16):
        print(f"\ntraining, {str(dtype)[6:]}: 64 rows, 4 heads, whole maps")
        for name, n, m, d in TRAINED:
            tensors = [torch.randn(64, 4, length, d).to(dtype).requires_grad_() for length in (n, m, m)]
            compare(name, dtype, [fused, products], trained, tensors, options.rounds, clock)
        print(f"\nwithout gradients, {str(dtype)[6:]}: 2 rows, 8 heads, in pieces")
        for name, n, m, d in DRAWN:
            tensors = [torch.randn(2, length, 8, d).to(dtype).transpose(1, 2) for length in (n, m, m)]
            compare(name, dtype, [fused, attend_in_pieces], drawn, tensors, options.rounds, clock)


if __name__ == "__main__":
    main()
