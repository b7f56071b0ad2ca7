"""Loading takes the memory of the weights once: measured in a process of its own. And shards, right and wrong."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_diffusers_folder import parts_of, same_state
from tiny import make_pipeline

from ldm_tutor.config import UNetConfig, sd_v1
from ldm_tutor.errors import WeightsError
from ldm_tutor.models.unet import UNet
from ldm_tutor.weights.compvis_names import ema_name, layout_of
from ldm_tutor.weights.diffusers_folder import export_diffusers, load_diffusers
from ldm_tutor.weights.files import save_model
from ldm_tutor.weights.names import rename, rules_for
from ldm_tutor.weights.tensors import PIECE, open_tensors

LARGE = UNetConfig(channels=64, channel_mult=(1, 2, 4, 4), context_dim=256)  # 35 million parameters
ROOM = 1.10  # of the weights, for all that a load takes
UNET = "diffusion_pytorch_model.safetensors"


def split(path, num_shards=3):
    """Cut a file into shards with an index, as Hugging Face's libraries do."""
    state = load_file(path)
    names, index = sorted(state), {"metadata": {"total_size": 1}, "weight_map": {}}
    for number in range(num_shards):
        shard = path.with_name(f"{path.stem}-{number + 1:05}-of-{num_shards:05}.safetensors")
        mine = names[number::num_shards]
        save_file({name: state[name] for name in mine}, shard, metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(mine, shard.name)
    path.unlink()
    path.with_name(path.name + ".index.json").write_text(json.dumps(index))


# ---------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """One large U-Net in every form that is read, its numbers zero but for a few."""
    root = tmp_path_factory.mktemp("large")
    unet = zeros(LARGE)
    state = unet.state_dict()
    save_model(root / "ours.safetensors", unet, kind="unet", config=LARGE)
    save_model(root / "half.safetensors", unet, kind="unet", config=LARGE, dtype=torch.float16)
    save_file(rename(state, rules_for(LARGE), "to_foreign"), root / UNET, metadata={"format": "pt"})
    split(root / UNET)
    there = layout_of(LARGE).to_file(state)
    torch.save({"state_dict": there | {ema_name(name): value for name, value in there.items()}}, root / "x.ckpt")
    yield root
    shutil.rmtree(root)


def zeros(config):
    """A U-Net without the time that random numbers take."""
    with torch.device("meta"):
        unet = UNet(config)
    unet.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
        unet.conv_in.bias.fill_(0.5)
    return unet


LOADS = {
    "ours": "load_model(root / 'ours.safetensors', 'unet')",
    "ours, half the size on disk": "load_model(root / 'half.safetensors', 'unet')",
    "ours, half the size in memory": "load_model(root / 'ours.safetensors', 'unet', dtype=torch.float16)",
    "shards of diffusers": f"read_weights(root / '{UNET}', LARGE, UNet, 'cpu', torch.float32)",
    "ckpt with its average": "load_compvis(root / 'x.ckpt', model, parts=['unet']).unet",
}
PROGRAM = """
import dataclasses, pathlib, re, sys, torch
from ldm_tutor.config import UNetConfig
from ldm_tutor.models.unet import UNet
from ldm_tutor.presets import PAPER_MODELS
from ldm_tutor.weights.checkpoint_file import open_checkpoint
from ldm_tutor.weights.compvis import load_compvis
from ldm_tutor.weights.diffusers_folder import read_weights
from ldm_tutor.weights.files import load_model, save_model
root, LARGE = pathlib.Path(sys.argv[1]), UNetConfig.from_dict({config!r})
model = dataclasses.replace(PAPER_MODELS["text2img_1p4b"](), unet=LARGE, condition=None)
status = pathlib.Path("/proc/self/status")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) * 1024
small = dataclasses.replace(LARGE, channels=32, channel_mult=(1,), attention_levels=())
save_model(root / "small.safetensors", UNet(small), kind="unet", config=small)
load_model(root / "small.safetensors")  # what the first load of a process brings into memory is not the weights
torch.save({{"a": torch.zeros(3)}}, root / "small.ckpt")
open_checkpoint(root / "small.ckpt")  # nor are the modules behind torch's fake tensors
before = peak()
unet = {load}
taken = peak() - before
weights = sum(value.numel() * value.element_size() for value in unet.state_dict().values())
assert unet.conv_in.bias[0].item() == 0.5
print(taken, weights)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", LOADS)
def test_peak_memory_is_the_weights_once(large, name):
    taken, weights = lowest(LARGE, LOADS[name], large)
    assert weights > 65e6 > 30 * PIECE  # large enough for the promise to mean something
    assert 0.9 * weights < taken <= ROOM * weights, f"{taken / weights:.3f} of the weights"


def lowest(config, load, folder, tries=4):
    """The least that a few processes take, of which the first within ROOM ends the search.

    Linux adds up late what each core has counted, so one reading of a peak can be several MB off. What the load itself
    holds is in all of them.
    """
    taken, weights = measured(config, load, folder)
    while taken > ROOM * weights and (tries := tries - 1):
        taken = min(taken, measured(config, load, folder)[0])
    return taken, weights


def measured(config, load, folder):
    """What a process of its own takes at most for the load, and the size of the weights, in bytes."""
    program = PROGRAM.format(config=config.to_dict(), load=load)
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken, weights = map(int, done.stdout.split())
    return taken, weights


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stable_diffusion_s_unet_takes_its_weights_once(tmp_path):
    config = sd_v1().unet
    save_model(tmp_path / "half.safetensors", zeros(config), kind="unet", config=config, dtype=torch.float16)
    taken, weights = lowest(config, LOADS["ours, half the size on disk"], tmp_path)
    assert weights == 4 * 859_520_964
    assert 0.9 * weights < taken <= ROOM * weights, f"{taken / weights:.3f} of the weights"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_measure_sees_a_second_copy(large):
    """The same program, with one copy kept: more than is allowed."""
    load = "load_model(root / 'half.safetensors', 'unet', dtype=None)"
    taken, weights = lowest(LARGE, f"[{load}, {load}][0]", large)
    assert taken > 1.8 * weights


# ---------------------------------------------------------------- shards


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def exported(pipe, tmp_path_factory):
    folder = export_diffusers(tmp_path_factory.mktemp("sharded") / "model", **parts_of(pipe))
    split(folder / "unet" / UNET)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def shard(folder, number):
    return folder / "unet" / f"diffusion_pytorch_model-{number:05}-of-00003.safetensors"


def refused(folder, *words):
    with pytest.raises(WeightsError) as error:
        load_diffusers(folder)
    for word in words:
        assert word in str(error.value), error.value


def test_shards_are_one_model(folder, pipe):
    same_state(load_diffusers(folder).unet, pipe.unet)
    assert len(open_tensors(folder / "unet" / UNET).places) == len(pipe.unet.state_dict())


def test_shards_that_diffusers_writes(pipe, exported, folder):
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel.from_pretrained(exported, subfolder="unet", local_files_only=True)
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="40KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 2
    same_state(load_diffusers(folder).unet, pipe.unet)


def test_a_wrong_shard(folder):
    swapped, other = shard(folder, 2), shard(folder, 3)
    shutil.copy(other, swapped)
    first = sorted(load_file(other))[0]
    refused(folder, str(swapped), "wrong shard", "lacks", "lists for", "get all shards again")
    state = load_file(shard(folder, 1)) | load_file(other)
    save_file(state, shard(folder, 1), metadata={"format": "pt"})
    refused(folder, str(shard(folder, 1)), "wrong shard", "holds", first)


def test_a_missing_and_a_truncated_shard(folder):
    shard(folder, 2).write_bytes(shard(folder, 2).read_bytes()[:-20])
    refused(folder, str(shard(folder, 2)), "cut off")
    shard(folder, 2).unlink()
    refused(folder, f"{UNET}.index.json", "shards are missing", shard(folder, 2).name)


def test_a_shard_of_another_model(folder):
    state = load_file(shard(folder, 1))
    name = sorted(name for name, value in state.items() if value.ndim == 4)[0]
    save_file(state | {name: torch.zeros(1, 2, 3, 3)}, shard(folder, 1), metadata={"format": "pt"})
    refused(folder, f"{UNET}.index.json", f"{name} has another shape", "(1, 2, 3, 3)")


@pytest.mark.parametrize(
    "text, word",
    [
        ("[1", "no index of shards"),
        ("{}", "weight_map"),
        ('{"weight_map": 3}', "no index of shards"),
        ('{"weight_map": {"a": 3}}', "no index of shards"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "outside of the folder"),
    ],
)
def test_a_broken_index(folder, text, word):
    (folder / "unet" / f"{UNET}.index.json").write_text(text)
    refused(folder, f"{UNET}.index.json", word)
