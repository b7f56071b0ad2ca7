"""The course's words and symbols as data: every lesson's "Terms" and notation tables are made from these two lists.

In a lesson's source, a line `{{terms}}` becomes the words that this lesson brings, and `{{notation x_t t noise}}` a
table of these symbols. So a word means the same in every lesson, and a symbol has one name in the code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ldm_tutor.errors import ConfigError


@dataclass(frozen=True)
class Term:
    """A word, what it means, and the slug of the lesson that brings it."""

    name: str
    meaning: str
    lesson: str


@dataclass(frozen=True)
class Symbol:
    """A symbol of the formulas, as TeX; its name in the code; what it means."""

    tex: str
    code: str
    meaning: str


NOTATION = {
    "batch_all": Symbol("B", "BATCH", "rows of the whole batch, of all processes together"),
    "batch_r": Symbol("B_r", "rows.stop - rows.start", "rows that process $r$ computes"),
    "grad_r": Symbol("g_r", "one, two", "the mean gradient of these rows"),
    "decay_all": Symbol(r"\lambda", "decay", "what part of the average stays at each step"),
    "w_bar": Symbol(r"\bar w_n", "average", "the average after $n$ steps; $w_n$ is the weight itself"),
    "q_picture": Symbol("Q", "q", "what each position asks: a linear map of the feature map, $n \\times d$"),
    "k_words": Symbol("K", "k", "what each token answers to: a linear map of the context, $m \\times d$"),
    "v_words": Symbol("V", "v", "what each token hands over: another linear map of the context"),
    "probs": Symbol("A", "probs", "the attention map, $n \\times m$; every row sums to 1"),
    "c": Symbol("c", "context", "one vector per token of the sentence"),
    "latents": Symbol("x_t", "latents", "noisy latents at time step $t$"),
    "t": Symbol("t", "t", "how noisy: hardly at 0, hardly anything but noise at 999"),
    "t_step": Symbol("t", "t", "how noisy: one step of noise at 0, hardly anything else at 999"),
    "eps_hat": Symbol(r"\epsilon_\theta(x_t, t, c)", "eps_hat", "the noise that the U-Net sees in them"),
    "x0_hat": Symbol(r"\hat{x}_0", "x0_hat", "the clean latents that this noise implies"),
    "scale": Symbol("s", "scale", "the guidance scale; 1 is plain sampling"),
    "eps_uncond": Symbol(r"\epsilon_u", "eps_uncond", "the noise seen with the empty sentence"),
    "eps_cond": Symbol(r"\epsilon_c", "eps_cond", "the noise seen with the sentence"),
    "qkv": Symbol("Q, K, V", "q, k, v", "three linear maps of the normalised `x`"),
    "d": Symbol("d", "q.shape[-1]", "width of one head"),
    "mask": Symbol("M", "mask", r"0 where looking is allowed (`mask` is True), $-\infty$ elsewhere"),
    "quick_gelu": Symbol("g", "h * sigmoid(1.702 h)", "CLIP's quick form of the GELU curve"),
    "z": Symbol("z", "z", "the latents, $h \\times w \\times c$ numbers"),
    "mu": Symbol(r"\mu", "mean", "the middle of a latent number's cloud"),
    "sigma": Symbol(r"\sigma", "sigma", "the spread of that cloud, its standard deviation"),
    "x0": Symbol("x_0", "x0", "the clean pixels or latents"),
    "x_t": Symbol("x_t", "x_t", "the same after noising, $t$ from 0 to 999"),
    "betas": Symbol(r"\beta_t", "betas[t]", "the variance that step $t$ adds"),
    "noise": Symbol(r"\epsilon", "noise", "standard normal noise"),
    "alpha_bar": Symbol(r"\bar\alpha_t", "alpha_bar[t]", "what is left of the picture's variance"),
    "a_prev": Symbol(r"\bar\alpha_{t'}", "a_prev", "what is left of the picture's variance at the next, cleaner time"),
    "angle": Symbol(r"\varphi", "angle", r"0 at the picture, a quarter turn at noise; cosine $\sqrt{\bar\alpha_t}$"),
    "v_velocity": Symbol("v", "v", "the velocity along the circle"),
    "flow_time": Symbol("u", "u", "how far on the straight line: 0 is the picture, 1 the noise"),
    "flow_velocity": Symbol(r"\epsilon - x_0", "noise - x0", "the direction of that line"),
    "eta": Symbol(r"\eta", "eta", "share of fresh noise: 0 none, 1 as much as DDPM"),
    "log_snr": Symbol(r"\lambda_t", "log_snr(t)", r"$\log(\alpha_t / \sigma_t)$, half the logarithm of the SNR"),
    "h": Symbol("h", "h", r"the length of a step in log-SNR, $\lambda_{t'} - \lambda_t$"),
    "c_in": Symbol(r"c_\mathrm{in}", "c_in", "channels that come in"),
    "c_out": Symbol(r"c_\mathrm{out}", "c_out", "channels that go out"),
    "d_t": Symbol("d_t", "time_dim", "width of the time vector, four times the finest width: 1280"),
    "M_work": Symbol("M", "work.multiply_adds", "multiplications, each with an addition"),
    "R_rate": Symbol("R", "rate", "how many of them this machine does in a second"),
    "h_map": Symbol("h", "h", "the feature map inside the block"),
    "t_emb": Symbol("e_t", "t_emb", "the time as a vector, the same for all blocks"),
    "theta": Symbol(r"\theta", "net", "the weights that the gradients move"),
    "ema": Symbol(r"\bar\theta", "ema", "their running average"),
    "decay": Symbol(r"\mu", "decay", "how much of the average stays, at most 0.999 here"),
    "D": Symbol("D", "aim", "the clean latents that a step of 2M aims at"),
    "a_source": Symbol("A", "probs[source]", "the source's attention map"),
    "a_own": Symbol("A^*", "probs[target]", "the target's own map"),
    "p_mapper": Symbol("P", "mapper", "which token of the source each token of the target takes from, $m \\times m$"),
    "alpha_take": Symbol(r"\alpha", "table[step]", "per token: 1 takes the source's map, 0 keeps the own"),
    "mask_hole": Symbol("m", "hole", "1 where the hole is, 0 where the picture is known"),
    "mean_a": Symbol(r"\mu_a, \mu_b", "a.mean(dim=0), b.mean(dim=0)", "the mean feature vector of each set"),
    "cov_a": Symbol(
        "C_a, C_b", "torch.cov(a.T), torch.cov(b.T)", "the covariance of each set's features, $d \\times d$"
    ),
    "p_yx": Symbol(r"p(y \mid x)", "p", "a classifier's probabilities for one picture"),
    "p_y": Symbol("p(y)", "p.mean(dim=0)", "the same, averaged over all pictures"),
}
GLOSSARY = (
    Term("Latents", "the small grid that stands for a picture", "start_here"),
    Term("Context", "the sentence as vectors", "start_here"),
    Term("Time step", "how much noise there is", "start_here"),
    Term("Seed", "the number that fixes the random start", "start_here"),
    Term("Guidance", "how strongly the sentence pulls", "start_here"),
    Term("Held out", "kept away from training, for honest tests", "start_here"),
    Term("Autoencoder", "one network that folds a picture into latents, and one that unfolds them", "autoencoder"),
    Term("Factor f", "how many times shorter the sides of the latents are", "autoencoder"),
    Term("PSNR", "how near a copy is, in decibels; 6 more halve the error", "autoencoder"),
    Term("Reparameterisation", "drawing as mean plus sigma times noise, so that gradients pass", "autoencoder"),
    Term("KL divergence", "how far a cloud is from the standard one, in nats", "autoencoder"),
    Term("Posterior collapse", "every cloud is the standard one and says nothing", "autoencoder"),
    Term("Scale factor", "one over the standard deviation of the latents", "autoencoder"),
    Term("Pixel loss", "a loss that compares pixel by pixel: L1 or L2", "sharp_reconstructions"),
    Term("Perceptual distance", "how far apart a network's features of two pictures are", "sharp_reconstructions"),
    Term("Fine energy", "the power of what repeats within four pixels", "sharp_reconstructions"),
    Term("Critic", "the network that tells real from made, also called discriminator", "sharp_reconstructions"),
    Term("PatchGAN", "a critic with one verdict per patch", "sharp_reconstructions"),
    Term("Receptive field", "the pixels that one output depends on", "sharp_reconstructions"),
    Term("Hinge loss", "a loss that is zero as soon as the answer is clear", "sharp_reconstructions"),
    Term("Adaptive weight", "the factor that makes two gradients equally long", "sharp_reconstructions"),
    Term("Token", "a piece of text with a number", "clip"),
    Term("Tower", "one of the two encoders", "clip"),
    Term("Class token", "the extra token that sums up a picture", "clip"),
    Term("Cosine", "how much two arrows point the same way", "clip"),
    Term("Logits", "cosines times scale, before the softmax", "clip"),
    Term("Zero-shot", "a task without training for it", "clip"),
    Term("Binding", "which property belongs to which thing", "clip"),
    Term("Hard negative", "a wrong sentence that is nearly right", "clip"),
    Term("Noise schedule", r"the list of $\beta_t$", "forward_noising"),
    Term("Closed form", "the jump from $x_0$ to $x_t$", "forward_noising"),
    Term("Signal-to-noise ratio", "the picture's variance over the noise's", "forward_noising"),
    Term("Decibel", "ten times the logarithm of a ratio", "forward_noising"),
    Term("Posterior", "what is known of $x_{t-1}$ once $x_t$ and $x_0$ are given", "forward_noising"),
    Term("Terminal SNR", "the SNR at the last step", "forward_noising"),
    Term("Noise loss", "mean squared difference of guessed and true noise; 1 for an answer of zeros", "unet_denoiser"),
    Term("Time embedding", "the time step as waves, then as a vector that every block reads", "unet_denoiser"),
    Term("Residual block", "two convolutions that learn what to change, added to their input", "unet_denoiser"),
    Term("Skip", "a map of the way down, laid beside the map of the same size on the way up", "unet_denoiser"),
    Term("EMA", "weights that follow the trained ones slowly; what one draws with", "unet_denoiser"),
    Term("Warm-up", "the first steps, in which the learning rate rises", "unet_denoiser"),
    Term("Sampler", "the rule that goes from one noise level to a lower one", "sampling"),
    Term("Step grid", "the time steps that a run visits", "sampling"),
    Term("Eta", "how much fresh noise DDIM adds: 0 none, 1 as much as DDPM", "sampling"),
    Term("Log-SNR", r"$\lambda = \log(\alpha / \sigma)$, the clock of DPM-Solver++", "sampling"),
    Term("Order", "by which power of the number of steps the error falls", "sampling"),
    Term("Inversion", "running a deterministic sampler backwards, from picture to noise", "sampling"),
    Term("Strength", "the share of the steps that run when a picture is redrawn", "sampling"),
    Term("Attention map", "one row per position, one column per token, rows that sum to 1", "cross_attention"),
    Term("Query, key, value", "what a position asks, what a token answers to, what it hands over", "cross_attention"),
    Term("Head", "one of several attentions side by side, each on its own channels", "cross_attention"),
    Term("Cross-attention", "queries from the picture, keys and values from the sentence", "cross_attention"),
    Term("Tap", "a function that sees or edits attention maps on their way", "cross_attention"),
    Term("AUC", "how often a pixel inside has more than one outside", "cross_attention"),
    Term("Pointing accuracy", "how often the largest value lies on the object", "cross_attention"),
    Term("Condition dropout", "training with the empty sentence now and then", "guidance"),
    Term("Classifier-free guidance", "going from the empty sentence's answer past the sentence's", "guidance"),
    Term("Guidance scale", "how many times that way is gone; 1 is plain sampling", "guidance"),
    Term("Negative prompt", "a text in the place of the empty sentence, to move away from", "guidance"),
    Term("Fidelity and diversity", "how good each picture is, and how different they are", "guidance"),
    Term("Guidance interval", "the steps in which guidance is switched on", "guidance"),
    Term("Injection", "handing one drawing the attention maps of another", "prompt_editing"),
    Term("Swap and refinement", "edits that exchange words, and edits that add some", "prompt_editing"),
    Term("Alignment", "which token of one sentence stands for which of the other", "prompt_editing"),
    Term("Re-weighting", "multiplying the look that a word gets", "prompt_editing"),
    Term("Local blend", "taking the source's latents outside of the changed words' places", "prompt_editing"),
    Term("Null-text inversion", "adjusting the empty sentence until a guided drawing follows a path", "prompt_editing"),
    Term("Channel", "one number per place, laid beside the latents", "other_conditions"),
    Term("Layout", "boxes with what is to stand in each", "other_conditions"),
    Term("IoU", "what two boxes share over what they cover together", "other_conditions"),
    Term("Mask", "a picture of 1 in the hole and 0 elsewhere", "other_conditions"),
    Term("Inpainting", "filling a hole so that it fits its surroundings", "other_conditions"),
    Term("Super-resolution", "drawing a large picture of which the small one is the shrunk form", "other_conditions"),
    Term("Degradation", "what makes a good picture a bad small one", "other_conditions"),
    Term("Tile", "one of the overlapping parts in which a large picture is drawn", "other_conditions"),
    Term("Low-rank difference", "two thin matrices whose product is added to a weight", "other_conditions"),
    Term("Fréchet distance", "how far two Gaussians are apart, in mean and covariance", "measuring"),
    Term("FID", "the Fréchet distance of a feature network's vectors, drawn against real", "measuring"),
    Term("Floor", "what a measure says about real pictures against real pictures", "measuring"),
    Term("Inception score", "how clear single pictures are, and how different all of them", "measuring"),
    Term("Precision", "the share of drawn pictures inside the region of the real ones", "measuring"),
    Term("Recall", "the share of real pictures inside the region of the drawn ones", "measuring"),
    Term("CLIP score", "100 times the cosine of a picture's and its sentence's vectors", "measuring"),
    Term("Wilson interval", "where the true share lies in 95 of 100 such measurements", "measuring"),
    Term("Multiply-add", "one multiplication with its addition, the unit of a network's work", "measuring"),
    Term("Meta device", "where a tensor has a shape and a type, and no memory", "full_size_model"),
    Term("State dict", "the tensors of a model by their names", "full_size_model"),
    Term("Bijection", "a map in which each has one partner and none is left over", "full_size_model"),
    Term("Parity", "two programs give the same for the same weights and inputs, up to rounding", "full_size_model"),
    Term("Convention", "what a model was trained with and its file does not say", "full_size_model"),
    Term("Working memory", "what a call has made and still needs, beside the weights", "full_size_model"),
    Term("bfloat16", "a number of 2 bytes with the range of float32 and 8 significant bits", "full_size_model"),
    Term("Dry run", "everything runs, with numbers that mean nothing", "full_size_model"),
    Term("Data parallel", "every process has the whole model and a part of each batch", "training_at_scale"),
    Term("All-reduce", "everybody ends up with the sum of what all had", "training_at_scale"),
    Term("Sharded", "every process keeps a part of weights, gradients and optimiser", "training_at_scale"),
    Term("Accumulation", "a batch computed in pieces, one after the other, before one step", "training_at_scale"),
    Term("Master weights", "the float32 weights that updates go to, beside a fast copy", "training_at_scale"),
    Term("Shard", "a tar file with some hundred or thousand samples", "training_at_scale"),
    Term("Checkpoint", "all that a run needs to go on as if it had not stopped", "training_at_scale"),
    Term("Elastic", "a run that starts its processes anew when one of them dies", "training_at_scale"),
    Term("Utilisation", "the share of a machine's peak rate that a training reaches", "training_at_scale"),
    Term("Imagefolder", "a folder of pictures with a table, metadata.jsonl, of names and texts", "your_own_pictures"),
    Term("EXIF", "notes that a camera writes into a file, how it was held among them", "your_own_pictures"),
    Term("Contact sheet", "many pictures on one page, to look at a whole folder at once", "your_own_pictures"),
    Term("Fine-tuning", "training on from weights that have learned something else before", "your_own_pictures"),
    Term("Memorisation", "drawing training pictures again in the place of new ones", "your_own_pictures"),
    Term("Nearest training picture", "the one that a drawn picture may be a copy of", "your_own_pictures"),
    Term("Model card", "what a model learned from, how it was made and measured, its limits", "your_own_pictures"),
    Term("Instrument", "a number whose right value is known beforehand, for one part alone", "clinic"),
    Term("Round trip", "there and back, which hides what cancels", "clinic"),
    Term("Ideal denoiser", "one that is told the clean latents, to test a sampler with", "clinic"),
    Term("Prediction type", "what a U-Net's answer is: the noise, the clean latents, or a mixture", "clinic"),
    Term("Plateau", "a range in which a measure does not notice a fault", "clinic"),
    Term("Mutation testing", "planting faults to see whether a test finds them", "clinic"),
    Term("v-prediction", "asking for the velocity on the quarter circle from picture to noise", "what_came_after"),
    Term("Flow matching", "asking for the direction of ways from data to noise; here straight", "what_came_after"),
    Term("Rectified flow", "the straight ways, and the walks of a network that has learned them", "what_came_after"),
    Term("Reflow", "training once more, on pairs that the first network's own walks connect", "what_came_after"),
    Term("Euler's method", "going a stretch in the direction that holds where one stands", "what_came_after"),
    Term("Zero terminal SNR", "a schedule whose last step has nothing of the picture left", "what_came_after"),
    Term("DiT", "the diffusion transformer: latents as tokens, all blocks alike", "what_came_after"),
    Term("adaLN-Zero", "time shifts and scales the norms and gates the branches, from zero on", "what_came_after"),
    Term("Shift", "moving the times of a walk towards the noise, for larger pictures", "what_came_after"),
)
_PLACE = re.compile(r"^\{\{(?P<what>\w*)(?P<names>[^}]*)\}\}$", re.MULTILINE)


def expand(text: str, lesson: str) -> str:
    """Return a lesson's prose with its `{{terms}}` and `{{notation ...}}` lines filled in; ConfigError for others."""

    def fill(place: re.Match[str]) -> str:
        names = place["names"].split()
        if place["what"] == "terms" and not names:
            return terms(lesson)
        if place["what"] == "notation" and names:
            return notation(*names)
        raise ConfigError(
            f"lesson {lesson}: unknown place", given=place[0], expected="{{terms}} or {{notation name name ...}}"
        )

    return _PLACE.sub(fill, text)


def terms(lesson: str) -> str:
    """Return the words that a lesson brings, as a list in Markdown; ConfigError for a lesson without one."""
    rows = [f"- **{each.name}**: {each.meaning}." for each in GLOSSARY if each.lesson == lesson]
    if not rows:
        raise ConfigError("terms: a lesson without a word", given=lesson, fix="add its words to GLOSSARY")
    return "\n".join(rows)


def notation(*names: str) -> str:
    """Return a table of symbols in Markdown; ConfigError names one that is not in NOTATION."""
    unknown = [name for name in names if name not in NOTATION]
    if unknown:
        raise ConfigError("notation: unknown symbol", given=unknown, expected=f"of {sorted(NOTATION)}")
    rows = ["| symbol | in the code | meaning |", "|---|---|---|"]
    for name in names:
        symbol = NOTATION[name]
        rows.append(f"| ${symbol.tex}$ | {_code(symbol.code)} | {symbol.meaning} |")
    return "\n".join(rows)


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))
