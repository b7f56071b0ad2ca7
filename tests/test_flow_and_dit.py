"""What came after: the straight way, velocities, and the transformer; each against a formula or the reference."""

import pytest
import torch
from tiny import CONFIG, make_pipeline, save_folder

from ldm_tutor.attention_maps.watch import watch
from ldm_tutor.config import TextEncoderConfig, UNetConfig
from ldm_tutor.errors import ConfigError, ShapeError, WeightsError
from ldm_tutor.models.dit import DiT, DiTBlock, DiTConfig, make_denoiser, patchify, unpatchify
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.velocity import sample_flow, sees_noise
from ldm_tutor.schedule import FlowSchedule, NoiseSchedule
from ldm_tutor.training.loop import Budget, train
from ldm_tutor.training.objectives import FlowStage, VelocityStage
from ldm_tutor.training.stages.denoiser import NO_SPREAD, DenoiserStage
from ldm_tutor.weights.files import load_model, read_header, save_model

SMALL = DiTConfig(side=8, width=16, depth=2, num_heads=2, context_dim=12)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(network, std=0.2):
    """The network with weights that all matter."""
    with torch.no_grad():
        for number, weight in enumerate(network.parameters()):
            weight.copy_(std * randn(*weight.shape, seed=number))
    return network.eval()


# ---------------------------------------------------------------- the straight way


def test_a_line_from_clean_to_noise():
    flow, x0, noise = FlowSchedule(), randn(3, 4, 2, 2), randn(3, 4, 2, 2, seed=1)
    t = torch.tensor([0.0, 0.25, 1.0])
    x_t = flow.add_noise(x0, noise, t)
    assert torch.equal(x_t[0], x0[0]) and torch.equal(x_t[2], noise[2])
    torch.testing.assert_close(x_t[1], 0.75 * x0[1] + 0.25 * noise[1])
    velocity = flow.velocity(x0, noise)
    later = flow.add_noise(x0, noise, t * 0.5 + 0.1)
    torch.testing.assert_close(later - x_t, (t * 0.5 + 0.1 - t)[:, None, None, None] * velocity)
    torch.testing.assert_close(flow.x0_from_velocity(x_t, velocity, t), x0)
    torch.testing.assert_close(flow.eps_from_velocity(x_t, velocity, t), noise)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_fall_from_one_to_zero(shift):
    times = FlowSchedule(shift).times(10)
    assert times[0] == 1 and times[-1] == 0 and len(times) == 11
    assert all(a > b for a, b in zip(times, times[1:], strict=False))
    middle = times[5]
    assert middle == pytest.approx(0.5 if shift == 1 else 0.75)


def test_the_straight_way_refuses(unchecked_annotations):
    flow, x = FlowSchedule(), randn(2, 4, 2, 2)
    for shift in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="shift"):
            FlowSchedule(shift)
    with pytest.raises(ConfigError, match="num_steps"):
        flow.times(0)
    with pytest.raises(ConfigError, match="0 to 1"):
        flow.add_noise(x, x, torch.tensor([0.5, 1.5]))
    with pytest.raises(ShapeError, match="one time per picture"):
        flow.add_noise(x, x, torch.tensor([0.5]))


def gauss_velocity(sigma, mean):
    """The exact velocity where the data are normal: E[eps - x0 | x_t]."""

    def velocity(x, thousand_t, step):
        t = thousand_t / 1000
        variance = (1 - t) ** 2 * sigma**2 + t**2
        off = x - (1 - t) * mean
        return (t - (1 - t) * sigma**2) / variance * off - mean

    return velocity


@pytest.mark.parametrize(("sampler", "num_steps", "bound"), [("euler", 400, 0.03), ("heun", 40, 0.03)])
def test_walks_reach_the_exact_end(sampler, num_steps, bound):
    noise = randn(4, 4, 8, 8)
    *_, last = sample_flow(gauss_velocity(0.5, 2.0), noise, sampler=sampler, num_steps=num_steps)
    torch.testing.assert_close(last.latents, 2.0 + 0.5 * noise, atol=bound, rtol=0)
    assert last.t_next == 0 and last.step == num_steps - 1


def test_heun_is_of_second_order_and_euler_of_first():
    def error(sampler, num_steps):
        noise = randn(1, 4, 8, 8)
        *_, last = sample_flow(gauss_velocity(0.5, 2.0), noise, sampler=sampler, num_steps=num_steps)
        return float((last.latents - 2.0 - 0.5 * noise).abs().max())

    assert 1.7 < error("euler", 40) / error("euler", 80) < 2.4
    assert error("heun", 40) / error("heun", 80) > 3


def test_one_straight_line_needs_one_step():
    x0, noise = randn(2, 4, 4, 4, seed=5), randn(2, 4, 4, 4, seed=6)
    (only,) = sample_flow(lambda x, t, step: noise - x0, noise, num_steps=1)
    torch.testing.assert_close(only.latents, x0)
    torch.testing.assert_close(only.x0_hat, x0)


def test_what_the_network_is_asked():
    for sampler, wanted in (("euler", [1000, 500]), ("heun", [1000, 500, 500])):
        asked = []
        list(sample_flow(lambda x, t, step: asked.append(t) or x, randn(1, 1, 1, 1), sampler=sampler, num_steps=2))  # noqa: B023
        assert asked == wanted


def test_walks_refuse(unchecked_annotations):
    x = randn(1, 4, 2, 2)
    with pytest.raises(ConfigError, match="euler"):
        sample_flow(lambda x, t, step: x, x, sampler="dpm++")
    with pytest.raises(ShapeError, match="step 0"):
        list(sample_flow(lambda x, t, step: x[:, :2], x))
    with pytest.raises(ConfigError, match="after step 1"):
        list(sample_flow(lambda x, t, step: x / (0 if step == 1 else 1), x, num_steps=3))
    with pytest.raises(ConfigError, match="start from"):
        sample_flow(lambda x, t, step: x, x / 0)


def test_ddim_is_euler_on_the_straight_way():
    """With x / (signal + sigma) and t = sigma / (signal + sigma), a step of DDIM is a straight step."""
    schedule, x = NoiseSchedule(), randn(2, 4, 4, 4)
    states = list(sample(lambda x, t, step: torch.tanh(x) * 0.5, x, schedule, sampler="ddim", num_steps=7))
    signal, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    times, scales = sigma / (signal + sigma), signal + sigma
    for before, after in zip(states, states[1:], strict=False):
        t, t_next = (float(times[each]) for each in (after.t, before.t))
        assert t < t_next  # before.t is the noisier one
        start, end = before.latents / float(scales[after.t]), None
        if after.t_next is not None:
            end = after.latents / float(scales[after.t_next])
            step = float(times[after.t_next]) - t
            torch.testing.assert_close(end, start + step * (after.eps - after.x0_hat), atol=1e-5, rtol=1e-5)


def test_v_prediction_read_as_noise():
    schedule, x0, noise = NoiseSchedule(), randn(3, 4, 4, 4), randn(3, 4, 4, 4, seed=1)
    for t in (0, 500, 999):
        steps = torch.full((3,), t)
        x_t = schedule.add_noise(x0, noise, steps)
        v = schedule.v_from_eps(x_t, noise, steps)
        found = sees_noise(lambda x, t, step, v=v: v, schedule)(x_t, t, 0)
        torch.testing.assert_close(found, noise, atol=2e-4, rtol=1e-4)


# ---------------------------------------------------------------- the transformer


def test_patches_there_and_back():
    latents = randn(2, 3, 4, 6)
    tokens = patchify(latents, 2)
    assert tokens.shape == (2, 6, 12)
    torch.testing.assert_close(tokens[0, 4], latents[0, :, 2:4, 2:4].flatten())
    inner = tokens.unflatten(2, (3, 4)).transpose(2, 3).flatten(2)  # channels innermost, as the last layer gives them
    torch.testing.assert_close(unpatchify(inner, 2, (2, 3)), latents)


def test_a_new_block_changes_nothing_and_a_new_model_says_zero():
    block = DiTBlock(16, num_heads=2, context_dim=None)
    torch.nn.init.zeros_(block.modulation.weight)
    torch.nn.init.zeros_(block.modulation.bias)
    x = randn(2, 9, 16)
    assert torch.equal(block(x, randn(2, 16), None, (3, 3)), x)
    model = DiT(SMALL)
    assert (model(randn(2, 4, 8, 8), torch.tensor([5.0, 900.0]), randn(2, 7, 12)) == 0).all()


def test_everything_it_is_given_matters():
    model, x, t, context = shaken(DiT(SMALL)), randn(2, 4, 8, 8), torch.tensor([5.0, 900.0]), randn(2, 7, 12)
    with torch.no_grad():
        answer = model(x, t, context)
        for other in (model(x, t + 50, context), model(x, t, context.flip(1) + 1), model(x.flip(2), t, context)):
            assert (other - answer).abs().max() > 1e-4
        moved = model(x.roll(2, dims=3), t, context).roll(-2, dims=3)
        assert (moved - answer).abs().max() > 1e-4, "a place is told from another"
        torch.testing.assert_close(model(x[1:], t[1:], context[1:]), answer[1:], atol=1e-5, rtol=1e-5)
    assert answer.shape == x.shape


def test_a_dit_learns():
    torch.manual_seed(0)
    model, x, t, context = DiT(SMALL), randn(4, 4, 8, 8), torch.linspace(10, 900, 4), randn(4, 7, 12)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = (model(x, t, context) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_guidance_and_taps_take_a_dit_as_they_take_a_unet():
    model, seen = shaken(DiT(SMALL)), []
    denoiser = Guided(model, randn(2, 7, 12), randn(1, 7, 12, seed=1), 3.0)
    with torch.no_grad(), watch(model, lambda call, probs: seen.append((call, probs)), "all"):
        *_, last = sample_flow(denoiser, randn(2, 4, 8, 8), num_steps=2)
    assert torch.isfinite(last.latents).all() and len(seen) == 2 * len(model.sites())
    assert [call.site.name for call, _ in seen[:2]] == ["mid.block0.layer0.self", "mid.block0.layer0.cross"]
    call, probs = seen[1]
    assert call.grid == (4, 4) and probs.shape == (4, 2, 16, 7) and call.info.t == 1000
    torch.testing.assert_close(probs.sum(-1), torch.ones(4, 2, 16))


def test_the_paper_s_largest_one_has_its_parameters():
    with torch.device("meta"):
        model = DiT(DiTConfig(out_channels=8, num_classes=1001))
    learned = sum(each.numel() for each in model.parameters())
    assert learned + model.places.numel() == 675_129_632  # the published code counts the places, which never change


def test_a_dit_refuses_what_does_not_fit(unchecked_annotations):
    model, t = DiT(SMALL), torch.zeros(2)
    with pytest.raises(ShapeError, match=r"DiT latents.*\(b, 4, 8, 8\)"):
        model(randn(2, 4, 16, 16), t, randn(2, 7, 12))
    for context in (None, randn(2, 7, 16), randn(1, 7, 12)):
        with pytest.raises(ShapeError, match="DiT context"):
            model(randn(2, 4, 8, 8), t, context)
    with pytest.raises(ShapeError, match="DiT classes"):
        model(randn(2, 4, 8, 8), t, randn(2, 7, 12), torch.zeros(2).long())
    for wrong, name in (({"patch_size": 3}, "side"), ({"num_heads": 3}, "width"), ({"depth": 0}, "depth")):
        with pytest.raises(ConfigError, match=name):
            DiTConfig(**{"side": 8, "width": 16, "num_heads": 2, **wrong})


def test_equals_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=10, norm_eps=1e-6,
    )  # fmt: skip
    shaken(theirs)
    first = theirs.transformer_blocks[0].norm1.emb
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(first.state_dict())  # one time vector for all, as published
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # their wave differs from the published one
    ours = DiT(DiTConfig(out_channels=8, side=8, width=16, depth=2, num_heads=2, num_classes=11)).eval()
    given = theirs.state_dict()

    def take(source, target):
        ours.get_submodule(target).weight.data.copy_(given[f"{source}.weight"].flatten(1))
        if f"{source}.bias" in given:
            ours.get_submodule(target).bias.data.copy_(given[f"{source}.bias"])

    take("pos_embed.proj", "patch_in")
    emb = "transformer_blocks.0.norm1.emb"
    take(f"{emb}.timestep_embedder.linear_1", "time_mlp.linear_1")
    take(f"{emb}.timestep_embedder.linear_2", "time_mlp.linear_2")
    take(f"{emb}.class_embedder.embedding_table", "classes")
    names = {
        "norm1.linear": "modulation", "attn1.to_q": "self_attn.to_q", "attn1.to_k": "self_attn.to_k",
        "attn1.to_v": "self_attn.to_v", "attn1.to_out.0": "self_attn.to_out", "ff.net.0.proj": "mlp.linear_1",
        "ff.net.2": "mlp.linear_2",
    }  # fmt: skip
    for number in range(2):
        for source, target in names.items():
            take(f"transformer_blocks.{number}.{source}", f"blocks.{number}.{target}")
    take("proj_out_1", "modulation_out")
    take("proj_out_2", "patch_out")
    x, t, classes = randn(3, 4, 8, 8), torch.tensor([3, 500, 999]), torch.tensor([1, 10, 4])
    with torch.no_grad():
        wanted, found = theirs(x, t, classes).sample, ours(x, t, classes=classes)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


# ---------------------------------------------------------------- training


def stage(kind, config):
    text = TextEncoder(
        TextEncoderConfig(vocab_size=32, context_length=7, width=12, num_layers=1, num_heads=2, mlp_width=12)
    )
    moments = torch.cat([randn(20, 4, 8, 8), torch.full((20, 4, 8, 8), NO_SPREAD)], dim=1).half()
    tokens, empty = torch.randint(2, 32, (20, 1, 7)), torch.ones(1, 7).long()
    return kind(
        config, moments, 1.0, text, tokens, empty, device=torch.device("cpu"), dtype=torch.float32, batch_size=4
    )


UNET = UNetConfig(
    channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), num_heads=2, context_dim=12, norm_groups=4
)


@pytest.mark.parametrize("config", [UNET, SMALL], ids=["unet", "dit"])
@pytest.mark.parametrize("kind", [DenoiserStage, VelocityStage, FlowStage])
def test_every_objective_trains_both_networks(kind, config):
    made = stage(kind, config)
    assert type(made.learner.net) is type(make_denoiser(config))
    generator = torch.Generator().manual_seed(0)
    before = [each.clone() for each in made.learner.network.parameters()]
    losses = [made.train_step(generator, 0.0)["loss"] for _ in range(3)]
    assert all(0 < each < 20 for each in losses)
    assert any((a != b).any() for a, b in zip(before, made.learner.network.parameters(), strict=True))


@pytest.mark.parametrize("config", [UNET, SMALL], ids=["unet", "dit"])
@pytest.mark.parametrize("kind", [DenoiserStage, VelocityStage, FlowStage])
def test_the_file_says_what_the_network_answers_with(kind, config, tmp_path):
    made = stage(kind, config)
    (path,) = made.finish(tmp_path, {})
    assert path.name == ("dit.safetensors" if config is SMALL else "unet.safetensors")
    objective = {DenoiserStage: None, VelocityStage: "v", FlowStage: "flow"}[kind]
    assert read_header(path)["metadata"].get("objective") == objective
    loaded = load_model(path, path.stem)
    x, t, context = randn(2, 4, 8, 8), torch.tensor([5.0, 900.0]), randn(2, 7, 12)
    with torch.no_grad():
        assert torch.equal(loaded(x, t, context), made.learner.ema.eval()(x, t, context))


def test_no_pipeline_reads_a_velocity_as_noise(tmp_path):
    save_folder(tmp_path)
    load_pipeline(tmp_path)
    path, says = tmp_path / "unet.safetensors", {"objective": "v"}
    save_model(path, make_pipeline().unet, kind="unet", config=CONFIG.unet, metadata=says)
    with pytest.raises(WeightsError, match=r"unet\.safetensors.*'v'.*noise"):
        load_pipeline(tmp_path)


def test_no_run_goes_on_with_another_question_s_checkpoint(tmp_path):
    assert len({each.name for each in (DenoiserStage, VelocityStage, FlowStage)}) == 3
    list(train(stage(VelocityStage, UNET), Budget(steps=1), tmp_path, seed=0))
    for kind in (DenoiserStage, FlowStage):
        with pytest.raises(WeightsError, match=f"{kind.name}.checkpoint"):
            list(train(stage(kind, UNET), Budget(steps=2), tmp_path, seed=0, resume=True))


def test_what_each_objective_asks():
    x0, noise = randn(6, 4, 8, 8), randn(6, 4, 8, 8, seed=1)
    generator = torch.Generator().manual_seed(3)
    made = stage(VelocityStage, UNET)
    x_t, t, goal, weight = made.ask(x0, noise, generator)
    a = made.schedule.alpha_bar[t].float().view(-1, 1, 1, 1)
    torch.testing.assert_close(goal, a.sqrt() * noise - (1 - a).sqrt() * x0, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(x_t, a.sqrt() * x0 + (1 - a).sqrt() * noise)
    assert (weight == 1).all()
    x_t, t, goal, weight = stage(FlowStage, UNET).ask(x0, noise, generator)
    time = (t / 1000).view(-1, 1, 1, 1)
    assert ((t > 0) & (t < 1000)).all() and len(set(t.tolist())) == 6
    torch.testing.assert_close(x_t, (1 - time) * x0 + time * noise)
    torch.testing.assert_close(goal, noise - x0)


def test_an_error_in_v_is_that_of_the_noise_over_alpha_bar():
    schedule, x0, noise = NoiseSchedule(), randn(3, 4, 4, 4).double(), randn(3, 4, 4, 4, seed=1).double()
    t, wrong = torch.tensor([10, 500, 900]), randn(3, 4, 4, 4, seed=2).double()
    x_t = schedule.add_noise(x0, noise, t)
    apart = schedule.v_from_eps(x_t, noise + wrong, t) - schedule.v_from_eps(x_t, noise, t)
    torch.testing.assert_close(apart.square(), wrong.square() / schedule.alpha_bar[t].view(-1, 1, 1, 1))
