"""Ours against diffusers on the same weights, side by side in one process and by turns.

    python bench/full_size.py --json bench/results/NAME.json
    python bench/full_size.py --small                       # a trial in seconds, with small networks
    python bench/full_size.py --what unet,vae --dtypes bfloat16 --rounds 5 --compile
    python bench/full_size.py --cpu-time --threads 1 --side 32     # on a machine that others use too

Prints, for each task and number type, the median seconds of each side in each of its settings (as built,
channels-last, compiled), the ratio of the fastest of ours over the fastest of theirs, the same for peak memory, and
our share of the rate at which this machine multiplies matrices. On a GPU where there is one, or with --device.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import json
import platform
import re
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ldm_tutor.config import scenes, sd_v1
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.tuning import tune
from ldm_tutor.models.unet import UNet
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import sample
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.training.learner import Learner
from ldm_tutor.weights import foreign
from ldm_tutor.weights.names import rename, rules_for

TASKS = ("unet", "vae", "text", "picture", "training")
SETTINGS = ("as built", "channels-last", "compiled")
START_ID, END_ID = 49406, 49407


@dataclasses.dataclass
class Sizes:
    """What is measured: Stable Diffusion v1 at 512x512, or the same in small."""

    unet: object
    autoencoder: object
    text: object
    side: int = 64
    steps: int = 20
    training_batch: int = 64


def sizes(small):
    model = sd_v1()
    if not small:
        return Sizes(model.unet, model.autoencoder, model.clip.text)
    return Sizes(
        dataclasses.replace(model.unet, channels=64),
        dataclasses.replace(model.autoencoder, channels=32),
        dataclasses.replace(model.clip.text, width=192, num_layers=3, mlp_width=384),
        side=16,
        steps=3,
        training_batch=8,
    )


# ---------------------------------------------------------------- both sides


def made(kind, config, device, dtype):
    """Ours with random weights that do not vanish or explode."""
    with torch.device("meta"):
        network = kind(config)
    network = network.to_empty(device=device)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1.0)
    return network.to(dtype)


def theirs_like(ours, build, device):
    """Their class on a copy of the same weights."""
    theirs = build()
    state = rename(ours.state_dict(), rules_for(ours.config), "to_foreign")
    theirs.load_state_dict({name: value.clone() for name, value in state.items()}, strict=True, assign=True)
    return theirs.to(device)


def pairs(task, size, device, dtype):
    """Return our call, their call, the networks of each side, and the floating-point operations of one call."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    if task == "unet":
        ours = made(UNet, size.unet, device, dtype)
        theirs = theirs_like(ours, lambda: diffusers.UNet2DConditionModel(**foreign.unet_arguments(size.unet)), device)
        x = torch.randn(2, 4, size.side, size.side).to(device, dtype)
        words, t = torch.randn(2, 77, size.unet.context_dim).to(device, dtype), torch.full((2,), 500, device=device)
        return lambda: ours(x, t, words), lambda: theirs(x, t, words, return_dict=False)[0], [ours], [theirs]
    if task == "vae":
        ours = made(Autoencoder, size.autoencoder, device, dtype)
        arguments = foreign.autoencoder_arguments(size.autoencoder)
        theirs = theirs_like(ours, lambda: diffusers.AutoencoderKL(**arguments), device)
        z = torch.randn(1, 4, size.side, size.side).to(device, dtype)
        # one part of each is called, and that part is what is compiled
        return (
            lambda: ours.decoder(ours.post_quant_conv(z)),
            lambda: theirs.decoder(theirs.post_quant_conv(z)),
            [ours.decoder],
            [theirs.decoder],
        )
    if task == "text":
        ours = made(TextEncoder, size.text, device, dtype)
        arguments = foreign.text_arguments(size.text, start_id=START_ID, end_id=END_ID)
        config = transformers.CLIPTextConfig(**arguments)
        theirs = theirs_like(ours, lambda: transformers.CLIPTextModel(config), device)
        tokens = torch.randint(0, START_ID, (2, 77), device=device)
        tokens[:, 20:] = END_ID
        return lambda: ours(tokens), lambda: theirs(tokens).last_hidden_state, [ours], [theirs]
    if task == "picture":
        return picture(size, device, dtype)
    return training(size, device, dtype)


def picture(size, device, dtype):
    """Noise and words' vectors in, picture out: guided DDIM steps and the decoder."""
    import diffusers

    ours = [made(UNet, size.unet, device, dtype), made(Autoencoder, size.autoencoder, device, dtype)]
    arguments = foreign.unet_arguments(size.unet, size.side)
    unet = theirs_like(ours[0], lambda: diffusers.UNet2DConditionModel(**arguments), device)
    arguments = foreign.autoencoder_arguments(size.autoencoder)
    vae = theirs_like(ours[1], lambda: diffusers.AutoencoderKL(**arguments), device)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet, scheduler=scheduler, text_encoder=None, tokenizer=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, size.side, size.side).to(device, dtype)
    context, empty = torch.randn(2, 1, 77, size.unet.context_dim).to(device, dtype)

    def draw_ours():
        *_, last = sample(Guided(ours[0], context, empty, 7.5), noise, NoiseSchedule(), num_steps=size.steps)
        return ours[1].to_pictures(last.latents)

    def draw_theirs():
        words = {"prompt_embeds": context, "negative_prompt_embeds": empty, "latents": noise}
        return pipe(**words, num_inference_steps=size.steps, guidance_scale=7.5, output_type="pt").images * 2 - 1

    return draw_ours, draw_theirs, ours, [unet, vae]


def training(size, device, dtype):
    """One training step of the scenes U-Net: ours as `train` does it, theirs as their training scripts do.

    Both clip gradients and step with fused AdamW on float32 weights, without a running average. Below float32 ours
    computes with a copy in the smaller type (`Learner`), theirs under autocast, which is what accelerate switches on.
    """
    import diffusers

    model = scenes()
    ours = made(UNet, model.unet, device, torch.float32)
    theirs = theirs_like(ours, lambda: diffusers.UNet2DConditionModel(**foreign.unet_arguments(model.unet)), device)
    b = size.training_batch
    x, noise = torch.randn(2, b, *model.latent_shape).to(device)
    words = torch.randn(b, model.clip.text.context_length, model.clip.text.width).to(device)
    t = torch.randint(0, 1000, (b,)).to(device)

    learner = Learner(ours, peak_lr=1e-4, device=device, dtype=dtype, ema_decay=None)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, fused=True)

    def step_ours():
        with torch.enable_grad():
            loss = F.mse_loss(learner.net(x.to(dtype), t, words.to(dtype)).float(), noise)
            loss.backward()
        learner.step(0.0)
        return loss.detach()

    def step_theirs():
        with torch.enable_grad():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = F.mse_loss(theirs(x, t, words, return_dict=False)[0].float(), noise)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step_ours, step_theirs, [learner.net], [theirs]


# ---------------------------------------------------------------- measures


class Memory:
    """Peak memory of a call beyond what was taken before it."""

    def __init__(self, device):
        self.device = device

    def of(self, call):
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            call()
            return torch.cuda.max_memory_allocated(self.device) - before
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before goes back first
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is taken now
            before = status("VmRSS")
            call()
            return status("VmHWM") - before
        except OSError:
            call()
            return None


def status(name):
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


CLOCK = [time.perf_counter]  # or the time that the processor spent on this process alone


def seconds(call, device):
    start = CLOCK[0]()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return CLOCK[0]() - start


def matmul_rate(device, dtype, n=2048, rounds=5):
    """Floating-point operations per second of one large matrix product."""
    a, b = (torch.randn(n, n).to(device, dtype) for _ in range(2))
    a @ b
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(rounds))


def operations(call):
    """Floating-point operations of one call, counted as it runs."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def apart(one, other):
    return float((one.float() - other.float()).abs().max() / other.float().abs().max())


def lay_out(setting, networks, *, ours):
    for network in networks:
        if setting == "channels-last":
            tune(network, channels_last=True) if ours else network.to(memory_format=torch.channels_last)
        elif setting == "compiled":
            tune(network, channels_last=False, compiled=True) if ours else network.compile()


def measure(task, size, device, dtype, settings, rounds):
    our_call, their_call, our_networks, their_networks = pairs(task, size, device, dtype)
    context = contextlib.nullcontext() if task == "training" else torch.inference_mode()
    result = {"task": task, "dtype": str(dtype)[6:], "settings": {}}
    memory = Memory(device)
    with context:
        difference = apart(our_call(), their_call())
        result["difference"] = difference
        result["operations"] = operations(our_call)
        for setting in settings:
            lay_out(setting, our_networks, ours=True)
            lay_out(setting, their_networks, ours=False)
            times = {"ours": [], "theirs": []}
            peak = {}
            for name, call in (("ours", our_call), ("theirs", their_call)):
                call()  # warms up, and compiles
                peak[name] = memory.of(call)
            for turn in range(rounds):  # by turns, and the first of a turn changes
                order = (("ours", our_call), ("theirs", their_call))
                for name, call in order if turn % 2 == 0 else order[::-1]:
                    times[name].append(seconds(call, device))
            result["settings"][setting] = {
                name: {"median_s": statistics.median(each), "all_s": each, "peak_bytes": peak[name]}
                for name, each in times.items()
            }
    weights = sum(p.numel() * p.element_size() for network in our_networks for p in network.parameters())
    best = {
        name: min((each[name] for each in result["settings"].values()), key=lambda run: run["median_s"])
        for name in ("ours", "theirs")
    }
    result["weights_bytes"] = weights
    result["time_ratio"] = best["ours"]["median_s"] / best["theirs"]["median_s"]
    if None not in (best["ours"]["peak_bytes"], best["theirs"]["peak_bytes"]):
        result["memory_ratio"] = (weights + best["ours"]["peak_bytes"]) / (weights + best["theirs"]["peak_bytes"])
    rate = matmul_rate(device, dtype)
    result["matmul_rate"] = rate
    result["share_of_matmul_rate"] = result["operations"] / best["ours"]["median_s"] / rate
    return result


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
            return found[1]
    return platform.processor() or platform.machine()


def show(result):
    print(f"\n{result['task']}, {result['dtype']}: outputs {result['difference']:.1e} apart")
    for setting, sides in result["settings"].items():
        told = [
            f"{name} {run['median_s']:.4f} s"
            + ("" if run["peak_bytes"] is None else f" + {run['peak_bytes'] / 2**20:,.0f} MiB")
            for name, run in sides.items()
        ]
        ratio = sides["ours"]["median_s"] / sides["theirs"]["median_s"]
        print(f"  {setting:14} {', '.join(told)}; ratio {ratio:.2f}")
    memory = f", peak memory {result['memory_ratio']:.2f}" if "memory_ratio" in result else ""
    share = f"{result['share_of_matmul_rate']:.0%} of the matrix rate ({result['matmul_rate'] / 1e9:,.0f} GFLOP/s)"
    print(f"  best of each: time {result['time_ratio']:.2f}{memory}; {share}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", default=",".join(TASKS), help=f"some of {','.join(TASKS)}")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="small networks: a trial of the command itself")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too, on both sides")
    parser.add_argument("--settings", help=f"only these of {','.join(SETTINGS)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU; by default torch's own choice")
    parser.add_argument("--side", type=int, help="of the latents; by default 64 (512x512 pixels)")
    parser.add_argument("--cpu-time", action="store_true", help="count the processor's time for this process")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    tasks = options.what.split(",")
    if unknown := set(tasks) - set(TASKS):
        parser.error(f"--what: {sorted(unknown)} is not among {TASKS}")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.cpu_time:
        CLOCK[0] = time.process_time
    size = sizes(options.small)
    if options.side:
        size.side = options.side
    device = torch.device(options.device)
    settings = SETTINGS if options.compile else SETTINGS[:2]
    if options.settings:
        settings = options.settings.split(",")
        if unknown := set(settings) - set(SETTINGS):
            parser.error(f"--settings: {sorted(unknown)} is not among {SETTINGS}")
    about = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "small": options.small,
        "latents": f"{size.side}x{size.side}",
        "rounds": options.rounds,
        "clock": "processor" if options.cpu_time else "wall",
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results = []
    for task in tasks:
        for dtype in options.dtypes.split(","):
            results.append(measure(task, size, device, getattr(torch, dtype), settings, options.rounds))
            show(results[-1])
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps({**about, "results": results}, indent=1) + "\n", encoding="utf-8")
            gc.collect()


if __name__ == "__main__":
    main()
