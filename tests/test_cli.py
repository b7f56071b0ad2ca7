"""The command line: what works, and that a mistake is one clear message which loses nothing."""

import dataclasses
import errno
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm_tutor import evaluation
from ldm_tutor.cli import data, doctor, files, main, models, options, train
from ldm_tutor.config import JudgeConfig, scenes
from ldm_tutor.data.scenes.sampling import SPLITS, caption_for
from ldm_tutor.errors import WeightsError
from ldm_tutor.lessons.cost import remembered_speed
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.models.unet import UNet
from ldm_tutor.sampling.loop import SAMPLERS
from ldm_tutor.training import presets, recipe, speed
from ldm_tutor.training.checkpoint import read_checkpoint
from ldm_tutor.weights.files import load_model, read_header, save_model, write_sums

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "ldm_tutor.cli.main"]
SLOW_TO_LOAD = ("torchvision", "transformers", "matplotlib", "tensorboard", "IPython", "scipy")
COMMANDS = ([], ["doctor"], ["draw"], ["train"], ["evaluate"], ["models"], ["data"], ["data", "preview"])


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    news, threads = logging.getLogger("ldm_tutor"), torch.get_num_threads()
    before = news.handlers[:], news.level

    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.main([str(arg) for arg in args])
        said = capsys.readouterr()
        return Done(stopped.value.code or 0, said.out, said.err)

    yield run
    news.handlers[:], news.level = before
    torch.set_num_threads(threads)


def assert_refused(done, code, *words):
    """The exit code is right, stderr holds one message with all `words`, and nobody sees a traceback."""
    assert done.code == code, (done.out, done.err)
    assert "Traceback" not in done.out + done.err
    assert done.out == ""
    if code == 1:
        assert done.err.splitlines()[-1].startswith("ldm-tutor: error: ")
    for word in words:
        assert str(word) in done.err, done.err


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder of weights of the right sizes, with random numbers."""
    torch.manual_seed(0)
    folder, config = tmp_path_factory.mktemp("weights") / "scenes", scenes()
    text = config.clip.text
    tokenizer = Tokenizer.train((caption_for(i) for i in range(2000)), text.vocab_size, text.context_length)
    tokenizer.save(folder / "tokenizer")
    unet = UNet(config.unet)
    for weight in unet.parameters():
        if not weight.any():  # layers that start at zero would hide the sentence
            torch.nn.init.normal_(weight, std=0.05)
    metadata = {"schedule": config.schedule.to_dict()}
    autoencoder, clip = Autoencoder(config.autoencoder), Clip(config.clip, end_id=tokenizer.end_id)
    save_model(folder / "unet.safetensors", unet, kind="unet", config=config.unet, metadata=metadata)
    save_model(folder / "autoencoder.safetensors", autoencoder, kind="autoencoder", config=config.autoencoder)
    save_model(folder / "clip.safetensors", clip, kind="clip", config=config.clip)
    judge = JudgeConfig(channels=8)
    save_model(folder / "judge.safetensors", Judge(judge), kind="judge", config=judge)
    write_sums(folder)
    return folder


@pytest.fixture
def own_model(model, tmp_path):
    """A copy of the model that a test may break; the folder beside it stays empty for outputs."""
    return Path(shutil.copytree(model, tmp_path / "own"))


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


# ---------------------------------------------------------------- help and start


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_explains_every_option(cli, command):
    done = cli(*command, "--help")
    assert done.code == 0 and "Traceback" not in done.err
    assert "Usage: ldm-tutor" in done.out
    if command != ["data"]:
        assert "Example: ldm-tutor" in done.out
    rows = done.out.split("Options:")[1].split("Commands:")[0].split("Example:")[0].split("\n  --")[1:]
    for row in rows:
        assert len(row.split()) > 2, f"without a word of help: {row}"


def test_help_does_not_wait_for_torch():
    code = "import sys; import ldm_tutor.cli.main; print(*[n for n in ('torch', 'numpy', 'PIL') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


def test_version(cli):
    done = cli("--version")
    assert (done.code, done.out) == (0, f"ldm-tutor {options.version()}\n")


def test_the_choices_are_those_of_the_package():
    assert get_args(options.SamplerName) and set(get_args(options.SamplerName)) == set(SAMPLERS)
    assert get_args(train.StageName) == (*recipe.STAGES, "all")
    assert get_args(data.SplitName) == SPLITS


@pytest.mark.parametrize(
    "args, words",
    [
        (["drew"], ("drew", "draw")),
        (["draw"], ("SENTENCE",)),
        (["draw", "a cat", "--colour", "red"], ("--colour",)),
        (["train"], ("stage",)),
        (["train", "unet"], ("unet", "denoiser", "all")),
        (["evaluate", "poems"], ("poems", "pictures", "judge")),
        (["data", "preview", "--split", "all"], ("all", "unseen")),
        (["data", "preview", "--num", "0"], ("--num", "0", "1 to 1000")),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(cli, args, words):
    assert_refused(cli(*args), 2, *words)


def test_the_system_s_errors_are_messages_and_defects_keep_their_traceback(cli, monkeypatch):
    def failing(error):
        def fail(name):
            raise error

        return fail

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/judge.csv")
    for error, words in (
        (full, (os.strerror(errno.ENOSPC), "runs/judge.csv")),
        (MemoryError(), ("not enough memory",)),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ("not enough memory",)),
    ):
        monkeypatch.setattr("ldm_tutor.training.learner.pick_device", failing(error))
        assert_refused(cli("train", "judge"), 1, *words)
    for defect in (ZeroDivisionError("a defect"), RuntimeError("a defect"), OSError("no number")):
        monkeypatch.setattr("ldm_tutor.training.learner.pick_device", failing(defect))
        with pytest.raises(type(defect)):
            main.main(["train", "judge"])


# ---------------------------------------------------------------- draw


def pixels(path):
    return torch.frombuffer(bytearray(Image.open(path).convert("RGB").tobytes()), dtype=torch.uint8).int()


def test_draw_in_a_new_process_is_light_and_whole(model, tmp_path):
    script = f"""
import sys
from ldm_tutor.cli.main import main
try:
    main(["draw", "a red cat", "--num", "1", "--steps", "2", "--weights", {str(model)!r}])
except SystemExit as stopped:
    print(stopped.code, *[name for name in {SLOW_TO_LOAD!r} if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.stdout.splitlines()[-1] == "0", done.stdout + done.stderr
    assert done.stderr == ""
    assert listing(tmp_path) == ["picture.png"]


def test_draw_puts_pictures_side_by_side(cli, model, tmp_path):
    done = cli("draw", "a red cat at night", "--seed", 7, "--steps", 2, "--num", 3, "--scale", 2, "--weights", model)
    assert done.code == 0, done.err
    assert done.out.startswith("picture.png: 3 pictures, seeds 7 to 9, ")
    picture = Image.open(tmp_path / "picture.png")
    assert (picture.format, picture.size) == ("PNG", (2 * (3 * 64 + 2 * files.GAP), 2 * 64))
    assert picture.text["Description"] == "a red cat at night"
    assert "seeds 7 to 9, 2 steps of ddpm, guidance 2" in picture.text["Comment"]
    assert listing(tmp_path) == ["picture.png"]

    one = cli("draw", "a red cat at night", "--seed", 8, "--steps", 2, "--num", 1, "--weights", model, "--out", "b.png")
    assert "1 picture, seed 8, " in one.out
    small = Image.open(tmp_path / "b.png").resize((64, 64), Image.Resampling.NEAREST)
    left = 64 + files.GAP
    beside = picture.resize((3 * 64 + 2 * files.GAP, 64), Image.Resampling.NEAREST).crop((left, 0, left + 64, 64))
    small.save(tmp_path / "small.png")
    beside.save(tmp_path / "beside.png")
    assert (pixels(tmp_path / "small.png") - pixels(tmp_path / "beside.png")).abs().max() <= 1


def test_draw_takes_every_setting(cli, model, tmp_path):
    sentence = ("draw", "a red cat", "--steps", 2, "--num", 1, "--scale", 1, "--weights", model)
    pictures = []
    for number, more in enumerate(
        ([], ["--guidance", 1], ["--negative", "a blue dog"], ["--negative", " "], ["--sampler", "ddim"], ["--seed", 1])
    ):
        out = tmp_path / f"{number}.PNG"
        assert cli(*sentence, *more, "--out", out).code == 0
        pictures.append(pixels(out))
    same = [int((picture - pictures[0]).abs().max()) == 0 for picture in pictures]
    assert same == [True, False, False, True, False, False]


def test_a_file_of_the_model_stands_for_its_folder(cli, model):
    done = cli("draw", "a red cat", "--steps", 1, "--num", 1, "--weights", model / "clip.safetensors")
    assert done.code == 0, done.err


def test_many_pictures_stand_in_rows():
    sheet = files.sheet(torch.zeros(5, 3, 8, 6, dtype=torch.uint8), columns=3, scale=2)
    assert sheet.size == (2 * (3 * 6 + 2 * files.GAP), 2 * (2 * 8 + files.GAP))


def test_unknown_words_are_named_and_drawn(cli, model, tmp_path):
    done = cli("draw", "a gren elephantoid bicycel", "--steps", 1, "--num", 1, "--weights", model)
    assert done.code == 0, done.err
    assert "'gren'" in done.err and "green" in done.err
    assert "'bicycel'" in done.err and "bicycle" in done.err
    assert "'elephantoid'" in done.err
    assert listing(tmp_path) == ["picture.png"]


SETTINGS = [
    (["--steps", 0], ("--steps", "0", "1 to 1000")),
    (["--steps", 1001], ("--steps", "1001", "1 to 1000")),
    (["--steps", "many"], ("--steps", "integer")),
    (["--guidance", "nan"], ("--guidance", "nan", "finite")),
    (["--guidance=-inf"], ("--guidance", "-inf", "finite")),
    (["--num", 0], ("--num", "0", "1 to 64")),
    (["--num", 65], ("--num", "65", "1 to 64")),
    (["--scale", 0], ("--scale", "0", "1 to 16")),
    (["--seed", -1], ("--seed", "-1", "0 to 4294967295")),
    (["--seed", 2**32 - 1, "--num", 2], ("--seed", "4294967295")),
    (["--sampler", "pndm"], ("--sampler", "pndm", "dpm++")),
]


@pytest.mark.parametrize("args, words", SETTINGS, ids=lambda value: " ".join(map(str, value)))
def test_draw_refuses_a_wrong_setting(cli, tmp_path, args, words):
    assert_refused(cli("draw", "a red cat", *args), 2, *words)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "sentence, words",
    [("", ("empty", "''", "a red cat")), (" \t ", ("empty",)), ("red cat " * 250, ("500 tokens", "room for 30"))],
    ids=["empty", "spaces", "500 words"],
)
def test_draw_refuses_a_sentence(cli, model, tmp_path, sentence, words):
    (tmp_path / "picture.png").write_bytes(b"old")
    assert_refused(cli("draw", sentence, "--weights", model), 1, *words)
    assert (tmp_path / "picture.png").read_bytes() == b"old"
    assert listing(tmp_path) == ["picture.png"]


def test_draw_refuses_a_negative_text_that_is_too_long(cli, model):
    assert_refused(cli("draw", "a red cat", "--negative", "red cat " * 40, "--weights", model), 1, "80 tokens")


@pytest.mark.parametrize(
    "out, words",
    [
        (".", ("--out", "folder", ".png")),
        ("no/such/picture.png", ("--out", "no/such", "make the folder")),
        ("picture.jpg", ("--out", "picture.jpg", ".png")),
        ("picture", ("--out", ".png")),
        ("file.txt/picture.png", ("--out", "file.txt")),
        ("x" * 300 + ".png", ("--out", "too long")),
    ],
)
def test_draw_looks_at_out_before_it_loads_anything(cli, tmp_path, monkeypatch, out, words):
    monkeypatch.setattr("ldm_tutor.pipeline.load_pipeline", lambda *args: pytest.fail("loaded"))
    (tmp_path / "file.txt").write_text("kept", encoding="utf-8")
    assert_refused(cli("draw", "a red cat", "--out", out), 1, *words)
    assert listing(tmp_path) == ["file.txt"]


def test_draw_refuses_a_place_where_nothing_can_be_written(cli, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("ldm_tutor.pipeline.load_pipeline", lambda *args: pytest.fail("loaded"))
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    assert_refused(cli("draw", "a red cat"), 1, "--out", "picture.png", os.strerror(errno.EROFS))
    assert_refused(cli("train", "judge"), 1, "--out", "runs/scenes", os.strerror(errno.EROFS))
    monkeypatch.undo()
    (tmp_path / "picture.png").write_bytes(b"old")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    assert_refused(cli("draw", "a red cat"), 1, "--out", "write-protected")
    assert (tmp_path / "picture.png").read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_picture(cli, model, tmp_path, monkeypatch):
    def fill(self, path, **kwargs):
        Path(path).write_bytes(b"half a pic")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "picture.png").write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", fill)
    done = cli("draw", "a red cat", "--steps", 1, "--num", 1, "--weights", model)
    assert_refused(done, 1, "picture.png", os.strerror(errno.ENOSPC), "intact")
    assert (tmp_path / "picture.png").read_bytes() == b"old"
    assert listing(tmp_path) == ["picture.png"]


@pytest.mark.parametrize(
    "device, words", [("gpu", ("gpu", "cpu")), ("meta", ("meta", "cpu")), ("cuda:77", ("cuda:77",))]
)
def test_a_device_that_is_not_there(cli, model, device, words):
    assert_refused(cli("draw", "a red cat", "--weights", model, "--device", device), 1, "device", *words)


# ---------------------------------------------------------------- draw with broken weights


def truncate(folder):
    path = folder / "unet.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def make_foreign(folder):
    save_file({"conv_in.weight": torch.zeros(3)}, folder / "unet.safetensors")


def make_pickle(folder):
    torch.save({"model": torch.zeros(3)}, folder / "unet.safetensors")


def make_bare_pickle(folder):
    (folder / "unet.safetensors").write_bytes(pickle.dumps({"model": 1}))


def make_text(folder):
    (folder / "unet.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")


def make_other_shape(folder):
    path = folder / "unet.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    state = load_file(path)
    state["conv_in.weight"] = torch.zeros(8, 4, 3, 3)
    save_file(state, path, metadata=header)


def make_other_size(folder):
    config = dataclasses.replace(scenes().unet, channels=16, channel_mult=(1,), attention_levels=(0,), context_dim=64)
    save_model(folder / "unet.safetensors", UNet(config), kind="unet", config=config)


def make_other_kind(folder):
    shutil.copy(folder / "judge.safetensors", folder / "unet.safetensors")


def lose_unet(folder):
    (folder / "unet.safetensors").unlink()


def break_tokenizer(folder):
    (folder / "tokenizer" / "vocab.json").write_text("{", encoding="utf-8")


def fill_with_nan(folder):
    path = folder / "unet.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    state = load_file(path)
    state["conv_in.weight"].fill_(float("nan"))
    save_file(state, path, metadata=header)


BREAKS = [
    (truncate, ("unet.safetensors", "cut off")),
    (make_foreign, ("unet.safetensors", "another program", "conv_in.weight")),
    (make_pickle, ("unet.safetensors", "pickle")),
    (make_bare_pickle, ("unet.safetensors", "pickle")),
    (make_text, ("unet.safetensors", "cut off, or no safetensors file")),
    (make_other_shape, ("conv_in.weight", "(8, 4, 3, 3)", "(64, 4, 3, 3)")),
    (make_other_size, ("context_dim", "64", "128")),
    (make_other_kind, ("unet.safetensors", "another kind", "judge", "unet")),
    (lose_unet, ("unet.safetensors", "no such file")),
    (break_tokenizer, ("tokenizer", "vocab.json")),
    (fill_with_nan, ("unet.safetensors", "conv_in.weight", "not finite")),
]


@pytest.mark.parametrize("harm, words", BREAKS, ids=lambda value: getattr(value, "__name__", ""))
def test_draw_refuses_broken_weights(cli, own_model, tmp_path, harm, words):
    harm(own_model)
    before = listing(tmp_path)
    assert_refused(cli("draw", "a red cat", "--weights", own_model), 1, *words)
    assert listing(tmp_path) == before
    if (own_model / "unet.safetensors").is_file():
        assert_refused(cli("draw", "a red cat", "--weights", own_model / "unet.safetensors"), 1, *words)


def test_draw_refuses_a_path_without_a_model(cli, own_model, tmp_path, monkeypatch):
    assert_refused(cli("draw", "a cat", "--weights", "nowhere"), 1, "nowhere", "no such file or folder")
    shutil.move(own_model / "unet.safetensors", own_model / "mine.safetensors")
    mine = own_model / "mine.safetensors"
    assert_refused(cli("draw", "a cat", "--weights", mine), 1, "mine.safetensors", "unet.safetensors", "the folder")
    monkeypatch.setenv("LDM_TUTOR_WEIGHTS", str(tmp_path / "empty"))
    assert_refused(cli("draw", "a cat"), 1, "come with the course", str(tmp_path / "empty"))


# ---------------------------------------------------------------- train

TINY = ("train", "judge", "--num-scenes", 64, "--precision", "float32", "--quiet", "--out", "run")


def test_train_resume_overwrite(cli, tmp_path):
    done = cli(*TINY, "--steps", 3)
    assert done.code == 0, done.err
    assert done.err == ""
    assert "run/judge.safetensors" in done.out
    assert "still needs: autoencoder.safetensors, clip.safetensors, unet.safetensors" in done.out
    run = tmp_path / "run"
    assert {"judge.checkpoint", "judge.csv", "judge.safetensors"} <= set(listing(run))
    assert read_header(run / "judge.safetensors")["metadata"]["steps"] == 3
    first = (run / "judge.checkpoint").read_bytes()

    again = cli(*TINY, "--steps", 3)
    assert_refused(again, 1, "judge.checkpoint", "--resume", "--overwrite")
    assert_refused(cli(*TINY, "--steps", 4, "--seed", 1, "--resume"), 1, "another seed", "given: 1", "expected: 0")
    assert (run / "judge.checkpoint").read_bytes() == first

    assert cli(*TINY, "--steps", 4, "--resume").code == 0
    assert [row.split(",")[0] for row in (run / "judge.csv").read_text().splitlines()] == ["step", "3", "4"]
    load_model(run / "judge.safetensors", "judge")

    assert cli(*TINY, "--steps", 1, "--overwrite").code == 0
    assert read_header(run / "judge.safetensors")["metadata"]["steps"] == 1


@pytest.mark.parametrize(
    "args, code, words",
    [
        (["judge", "--steps", 0], 2, ("--steps", "0")),
        (["judge", "--minutes", "nan"], 2, ("--minutes", "nan")),
        (["judge", "--minutes", "0"], 2, ("--minutes", "0")),
        (["judge", "--minutes=-3"], 2, ("--minutes", "-3")),
        (["judge", "--minutes", "inf"], 2, ("--minutes", "inf")),
        (["judge", "--minutes", "1", "--steps", "1"], 2, ("--steps", "--minutes")),
        (["all", "--steps", "5"], 2, ("--steps", "all")),
        (["judge", "--num-scenes", "63"], 2, ("--num-scenes", "63", "64")),
        (["judge", "--precision", "float16"], 2, ("float16", "bfloat16")),
        (["judge", "--threads", "0"], 2, ("--threads", "0")),
        (["judge", "--workers=-1"], 2, ("--workers", "-1")),
        (["judge", "--resume", "--overwrite"], 2, ("--resume", "--overwrite")),
        (["judge", "--resume"], 1, ("no checkpoint", "judge.checkpoint", "without --resume")),
        (["judge", "--device", "cuda:77"], 1, ("cuda:77",)),
        (["autoencoder", "--steps", "1"], 1, ("perceptual.safetensors", "missing", "train perceptual")),
        (["denoiser", "--steps", "1"], 1, ("autoencoder.safetensors", "missing", "train autoencoder")),
        (["judge", "--out", "file.txt"], 1, ("--out", "file.txt", "folder")),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_train_refuses(cli, tmp_path, args, code, words):
    (tmp_path / "file.txt").write_text("kept", encoding="utf-8")
    assert_refused(cli("train", *args, *(() if "--out" in args else ("--out", "run"))), code, *words)
    assert listing(tmp_path) == ["file.txt"]


def test_train_all_shares_ninety_minutes(cli, model, monkeypatch):
    asked = []

    def train_all(minutes, given, *, resume):
        asked.append((minutes, resume, given))
        yield "judge", [given.folder / "judge.safetensors"]

    monkeypatch.setattr(recipe, "train_all", train_all)
    done = cli("train", "all", "--out", model, "--resume", "--seed", 3, "--threads", 1, "--workers", 2)
    assert done.code == 0, done.err
    assert f'ldm-tutor draw "a red cat at night" --weights {model}' in done.out
    (minutes, resume, given) = asked[0]
    assert (minutes, resume, given.seed, given.num_workers, given.num_scenes) == (90, True, 3, 2, 100_000)
    assert torch.get_num_threads() == 1
    assert_refused(cli("train", "all", "--out", model), 1, "earlier run")


def test_train_all_from_nothing_trains_the_small_model(cli, model, monkeypatch):
    asked = []
    monkeypatch.setattr(recipe, "train_all", lambda minutes, given, *, resume: iter(asked.append(given) or ()))
    for words in ((), ("--preset", "small"), ("--preset", "scenes"), ("--start-from", model), ("--data", model)):
        done = cli("train", "all", "--out", "new", *words)
        assert done.code == 0 and ("--preset scenes, and wants hours" in done.err) == (not words), done.err
    default, small, *others = asked
    assert default.model == small.model == presets.small() and default.batch_size == small.batch_size == 64
    assert [(each.model.unet, each.batch_size) for each in others] == [(scenes().unet, 32)] * 3


def test_a_stage_alone_takes_its_share(cli, monkeypatch):
    budgets = []
    monkeypatch.setattr(recipe, "train_stage", lambda name, budget, *args, **kwargs: budgets.append(budget) or [])
    assert cli("train", "denoiser", "--out", "run").code == 0
    assert cli("train", "clip", "--minutes", 0.5, "--out", "run").code == 0
    assert [budget.minutes for budget in budgets] == [90 * presets.SHARES["denoiser"], 0.5]


def test_the_preset_scenes_is_what_the_course_has_without_a_preset(cli, model, monkeypatch):
    asked = []
    monkeypatch.setattr(recipe, "train_stage", lambda name, budget, given, **kwargs: asked.append(given) or [])
    for words in ((), ("--preset", "scenes"), ("--start-from", model), ("--preset", "small"), ("--batch", 8)):
        assert cli("train", "denoiser", "--steps", 1, "--out", "run", *words).code == 0
    assert cli("train", "denoiser", "--steps", 1, "--out", "run", "--data", model).code == 0
    assert cli("train", "clip", "--steps", 1, "--out", "run").code == 0
    *alike, small, smaller_batch, own, clip = asked
    for given in (*alike, clip):
        assert given.model == scenes() and given.batch_size == 32 and given.course.foreground_weight == 0
    assert smaller_batch.batch_size == 8 and smaller_batch.course.foreground_weight == 0
    assert own.preset is None and own.batch_size == 32 and own.course.foreground_weight == 0
    assert small.model != scenes() and small.batch_size == 64 and small.course.foreground_weight == 5


def test_what_is_overwritten_goes_at_once(cli, tmp_path, monkeypatch):
    """Otherwise `all --overwrite`, Ctrl-C and --resume would take the old weights for finished stages."""
    (tmp_path / "run").mkdir()
    for name in ("judge.checkpoint", "unet.safetensors", "notes.txt"):
        (tmp_path / "run" / name).write_bytes(b"old")
    monkeypatch.setattr(recipe, "train_all", lambda *args, **kwargs: iter(()))
    assert cli("train", "all", "--out", "run", "--overwrite", "--quiet").code == 0
    assert listing(tmp_path / "run") == ["notes.txt"]


def test_what_was_to_be_overwritten_comes_back_where_nothing_new_was_made(cli, tmp_path, model):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("unet.safetensors", "denoiser.checkpoint", "autoencoder.safetensors"):
        (run / name).write_bytes(b"old")
    assert_refused(cli("train", "autoencoder", "--out", "run", "--overwrite", "--data", "typo"), 1, "no such folder")
    assert_refused(cli("train", "denoiser", "--out", "run", "--overwrite", "--steps", 1), 1, "autoencoder.safetensors")
    assert listing(run) == ["autoencoder.safetensors", "denoiser.checkpoint", "unet.safetensors"]
    assert {path.read_bytes() for path in run.iterdir()} == {b"old"}
    before = listing(model)
    refused = cli("train", "denoiser", "--start-from", model, "--out", model, "--overwrite")
    assert_refused(refused, 1, "--overwrite would delete the weights", "choose another --out")
    assert listing(model) == before


def test_what_is_not_there_is_not_resumed_and_idle_options_are_refused(cli, tmp_path):
    assert_refused(cli("train", "all", "--out", "typo", "--resume"), 1, "nothing to resume", "without --resume")
    assert_refused(cli("train", "clip", "--batch", 8), 2, "--batch", "is for the denoiser, not for clip")
    assert_refused(cli("train", "denoiser", "--condition", "layout", "--lr-rule", "root"), 2, "a recipe of its own")
    start = ("train", "denoiser", "--decoder-only", "--start-from", "x")
    assert_refused(cli(*start), 2, "is for the autoencoder, not for denoiser")


def test_a_picture_that_was_given_is_not_written_over(cli, tmp_path):
    Image.new("RGB", (64, 64), "navy").save(tmp_path / "mine.png")
    before = (tmp_path / "mine.png").read_bytes()
    for words in (("a cat", "--from", "mine.png"), ("--upscale", "mine.png"), ("--inpaint", "mine.png", "mask.png")):
        assert_refused(cli("draw", *words, "--out", "mine.png"), 2, "a picture that you gave")
    assert (tmp_path / "mine.png").read_bytes() == before


def test_a_full_disk_stops_training_with_a_message(cli, tmp_path, monkeypatch):
    def fill(state, file, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = tmp_path / "run"
    run.mkdir()
    (run / "judge.checkpoint").write_bytes(b"of before")
    monkeypatch.setattr(torch, "save", fill)
    monkeypatch.setattr(train, "_check_earlier_runs", lambda *args: [])
    done = cli(*TINY, "--steps", 1)
    assert_refused(done, 1, "judge.checkpoint", os.strerror(errno.ENOSPC), "previous checkpoint")
    assert (run / "judge.checkpoint").read_bytes() == b"of before"
    assert [name for name in listing(run) if name.endswith((".part", ".tmp", ".safetensors"))] == []


def interruptible(tmp_path, *args):
    """A training in a process of its own, after its first steps."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*COMMAND, *map(str, args)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = b""
    while not re.search(rb"judge:.*<\d", seen):  # the bar, with an estimate of the time left: a step is done
        piece = process.stderr.read1(4096)
        assert piece, seen.decode()
        seen += piece
    return process


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to another process")
def test_ctrl_c_leaves_a_checkpoint(cli, tmp_path):
    run = ("train", "judge", "--num-scenes", 64, "--precision", "float32", "--out", "run")
    process = interruptible(tmp_path, *run, "--steps", 1000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert b"Traceback" not in err
    assert err.decode().splitlines()[-1] == "ldm-tutor: stopped; resume with --resume"
    settings = {"seed": 0}
    state = read_checkpoint(tmp_path / "run" / "judge.checkpoint", stage="judge", settings=settings)
    assert 1 <= state["step"] < 1000
    done = cli(*run, "--resume", "--steps", state["step"] + 1, "--quiet")
    assert done.code == 0, done.err
    assert read_header(tmp_path / "run" / "judge.safetensors")["metadata"]["steps"] == state["step"] + 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_kill_while_a_checkpoint_is_written_leaves_the_old_one(cli, tmp_path):
    assert cli(*TINY, "--steps", 1).code == 0
    path = tmp_path / "run" / "judge.checkpoint"
    before = path.read_bytes()
    script = f"""
import os, signal
real = os.replace
def replace(source, target):
    if str(target).endswith(".checkpoint"):
        os.truncate(source, 1000)  # a part only has reached the disk
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
from ldm_tutor.cli.main import main
main({[*map(str, TINY), "--steps", "2", "--resume"]!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert path.read_bytes() == before
    assert cli(*TINY, "--steps", 2, "--resume").code == 0
    assert path.read_bytes() != before


def test_a_broken_checkpoint_is_refused(cli, tmp_path):
    assert cli(*TINY, "--steps", 1).code == 0
    path = tmp_path / "run" / "judge.checkpoint"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", (tmp_path / "run" / "judge.safetensors").read_bytes()):
        path.write_bytes(content)
        assert_refused(cli(*TINY, "--steps", 2, "--resume"), 1, "judge.checkpoint", "cannot be read")
    torch.save({"stage": "clip", "settings": {}}, path)
    assert_refused(cli(*TINY, "--steps", 2, "--resume"), 1, "judge.checkpoint", "not one of the stage 'judge'")
    state = {"stage": "judge", "settings": {"config": JudgeConfig(channels=8).to_dict()}}
    torch.save(state, path)
    assert_refused(cli(*TINY, "--steps", 2, "--resume"), 1, "judge.checkpoint", "another config")


def test_a_text_in_place_of_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "judge.checkpoint"
    path.write_bytes(b"hello")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_checkpoint(path, stage="judge", settings={})


def test_memory_settings_never_fail(monkeypatch):
    train.keep_freed_memory()
    monkeypatch.setattr(train.ctypes, "CDLL", lambda name: object())
    train.keep_freed_memory()
    monkeypatch.setattr(train.sys, "platform", "darwin")
    train.keep_freed_memory()


# ---------------------------------------------------------------- evaluate


def figures(report):
    """Every figure of a report, asserting that there is nothing else in it."""
    for value in report.values():
        assert isinstance(value, dict)
        if "value" in value:
            assert set(value) == {"value", "interval", "num"} and value["num"] >= 1
            yield value
        else:
            yield from figures(value)


@pytest.mark.parametrize(
    "target, args, names",
    [
        ("pictures", ["--num", 4, "--steps", 1], ["attribute_accuracy.all", "fid", "fid_floor", "seconds_per_picture"]),
        ("autoencoder", ["--num", 4], ["psnr", "attribute_accuracy_decoded.all", "latent_std"]),
        ("clip", ["--num", 512], ["picture_to_text", "text_to_picture"]),
        ("judge", ["--num", 4], ["test.all", "unseen.all", "three.count"]),
    ],
)
def test_evaluate(cli, model, tmp_path, monkeypatch, target, args, names):
    measured = evaluation.evaluate_pictures
    monkeypatch.setattr(
        evaluation, "evaluate_pictures", lambda *given, **more: measured(*given, num_reference=8, **more)
    )
    done = cli("evaluate", target, *args, "--weights", model, "--json", "result.json")
    assert done.code == 0, done.err
    assert "95% interval" in done.out
    for name in names:
        assert name in done.out
    report = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert report["command"].startswith(f"ldm-tutor evaluate {target} --num {args[1]} --seed 0")
    assert report["command"].endswith(f" --weights {model}")
    assert report["version"] == options.version()
    assert len(list(figures(report["figures"]))) >= 2
    assert listing(tmp_path) == ["result.json"]


@pytest.mark.parametrize(
    "args, code, words",
    [
        (["pictures", "--num", 1], 2, ("--num", "1", "2 or more")),
        (["clip", "--num", 64], 2, ("--num", "64")),
        (["judge", "--num", 0], 2, ("--num", "0")),
        (["pictures", "--guidance", "nan"], 2, ("--guidance", "nan")),
        (["pictures", "--steps", 0], 2, ("--steps", "0")),
        (["judge", "--json", "no/result.json"], 1, ("--json", "no")),
        (["judge", "--json", "result.png"], 1, ("--json", ".json")),
        (["judge", "--weights", "nowhere"], 1, ("nowhere",)),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_evaluate_refuses(cli, tmp_path, args, code, words):
    assert_refused(cli("evaluate", *args), code, *words)
    assert listing(tmp_path) == []


def test_clip_is_measured_before_there_is_a_unet(cli, own_model):
    (own_model / "unet.safetensors").unlink()
    done = cli("evaluate", "clip", "--num", 512, "--weights", own_model)
    assert done.code == 0, done.err
    assert "left_from_right_at_the_end" in done.out


def test_evaluate_misses_the_judge(cli, own_model, tmp_path):
    (own_model / "judge.safetensors").unlink()
    done = cli("evaluate", "pictures", "--num", 4, "--weights", own_model)
    assert (done.code, done.out) == (1, "")
    assert "judge.safetensors" in done.err and "Traceback" not in done.err


# ---------------------------------------------------------------- models, data


def test_models_counts_every_part(cli, tmp_path):
    done = cli("models", "--json", "models.json")
    assert done.code == 0, done.err
    assert "859,520,964" in done.out and "64x64 pixels" in done.out and "4x16x16" in done.out
    report = json.loads((tmp_path / "models.json").read_text(encoding="utf-8"))["models"]
    assert list(report) == ["scenes", "small", "middle", "middle256", "sd_v1"]
    assert report["small"]["unet_multiply_adds"] < 0.6 * report["scenes"]["unet_multiply_adds"]
    full = report["sd_v1"]
    assert (full["parameters"]["unet"], full["parameters"]["text encoder"]) == (859_520_964, 123_060_480)
    for each in report.values():
        assert sum(each["parameters"].values()) == each["parameters_total"]
        assert each["bytes_float32"] == 2 * each["bytes_bfloat16"] == 4 * each["parameters_total"]


def test_the_small_preset_is_counted_exactly():
    counted = models.sizes(scenes())["parameters"]
    config = scenes()
    assert counted["unet"] == sum(p.numel() for p in UNet(config.unet).parameters())
    clip = sum(p.numel() for p in Clip(config.clip, end_id=1).parameters())
    assert clip == counted["text encoder"] + counted["image encoder"] + counted["CLIP projections and scale"]


def test_preview_shows_scenes_and_says_what_they_are(cli, tmp_path):
    done = cli("data", "preview", "--num", 12, "--split", "unseen", "--seed", 3, "--columns", 5)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == f" 1  {caption_for(0, 'unseen', 3)}"
    assert lines[11] == f"12  {caption_for(11, 'unseen', 3)}"
    assert Image.open(tmp_path / "preview.png").size == (2 * (5 * 64 + 4 * files.GAP), 2 * (3 * 64 + 2 * files.GAP))
    assert_refused(cli("data", "preview", "--out", "preview.txt"), 1, "--out", "preview.txt", ".png")
    assert_refused(cli("data", "preview", "--out", tmp_path), 1, "--out", "folder")


# ---------------------------------------------------------------- doctor


def marks(done):
    return {line[1:5].rstrip("] "): line for line in done.out.splitlines() if line.startswith("[")}


def test_doctor_finds_this_machine_healthy(cli, model, monkeypatch):
    monkeypatch.setenv("LDM_TUTOR_WEIGHTS", str(model.parent))
    done = cli("doctor", "--no-speed")
    assert done.code == 0, done.out
    assert "FAIL" not in done.out and done.err == ""
    for word in (
        "Python",
        "safetensors",
        "are a pair",
        "GB free",
        "GB of memory",
        "bfloat16",
        "all as listed",
        "kernel",
    ):
        assert word in done.out


def test_doctor_says_what_is_wrong_and_what_to_do(cli, own_model, tmp_path, monkeypatch):
    import torchvision

    real = doctor.metadata.version

    def version(name):
        if name == "lpips":
            raise doctor.metadata.PackageNotFoundError(name)
        return "7.0" if name == "ipywidgets" else real(name)

    shutil.move(own_model, tmp_path / "scenes")
    (tmp_path / "scenes" / "unet.safetensors").write_bytes(b"damaged")
    monkeypatch.setenv("LDM_TUTOR_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(torchvision, "__version__", "0.1.0")
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 10**9)
    monkeypatch.setattr(doctor, "LEAST_PYTHON", (9, 0))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1, 1, 10**8))
    done = cli("doctor", "--no-speed")
    assert done.code == 1
    lines = done.out.splitlines()
    failures = [number for number, line in enumerate(lines) if line.startswith("[FAIL]")]
    assert all(lines[number + 1].strip().startswith("-> ") for number in failures)
    text = "\n".join(lines[number] for number in failures)
    for word in ("needed 9.0", "lpips is missing", "ipywidgets 7.0, needed >=8", "no pair", "0.1 GB free", "1.0 GB"):
        assert word in text
    assert "unet.safetensors" in text
    assert len(failures) == 7

    monkeypatch.setenv("LDM_TUTOR_WEIGHTS", str(tmp_path / "nowhere"))
    assert "not in" in cli("doctor", "--no-speed").out


def test_a_check_that_breaks_is_a_failure(cli, monkeypatch):
    def _torch_pair():
        raise ImportError("libcudart.so.13: cannot open shared object file")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (_torch_pair,))
    done = cli("doctor", "--no-speed")
    assert done.code == 1
    assert "[FAIL] torch_pair: ImportError: libcudart.so.13" in done.out and "make lab" in done.out


def test_doctor_predicts_the_lessons(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("LDM_TUTOR_PROGRESS", str(tmp_path / "progress.json"))
    half = speed.Speed(trained=speed.REFERENCE.trained / 2, drawn=speed.REFERENCE.drawn * 2)
    monkeypatch.setattr(doctor, "CHECKS", ())
    monkeypatch.setattr(speed, "measure", lambda device, dtype: half)
    assert (speed.slowdown(speed.REFERENCE), speed.slowdown(half)) == (1.0, 2.0)
    done = cli("doctor")
    assert done.code == 0, done.out
    minutes = doctor.lesson_minutes()
    row = next(line for line in done.out.splitlines() if line.startswith("00_start_here"))
    assert row.split()[1:] == [f"{2 * minutes['00_start_here']:.1f}", f"{minutes['00_start_here']:.1f}"]
    assert remembered_speed() == half  # for the cost cards


def test_the_speed_is_measured(monkeypatch):
    monkeypatch.setattr(speed, "BATCH", 2)
    start = time.perf_counter()
    here = speed.measure(torch.device("cpu"), torch.float32)
    assert 0 < here.drawn < time.perf_counter() - start
    assert here.trained > 0
