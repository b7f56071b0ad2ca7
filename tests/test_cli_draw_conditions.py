"""`draw` with boxes, a hole, a small picture or a picture to start from: what comes out, and every bad input."""

import numpy as np
import pytest
from PIL import Image
from test_cli import assert_refused, cli, listing  # noqa: F401
from tiny import make_pipeline, save_folder
from tiny_steered import make_steered, save_conditions

from ldm_tutor.cli.draw_conditions import KIND_OF, OPTIONS, USUAL, read_boxes
from ldm_tutor.config import CONDITIONS
from ldm_tutor.data.boxes import Box
from ldm_tutor.data.picture_files import open_mask, open_picture
from ldm_tutor.errors import ConfigError
from ldm_tutor.plots.figures import to_uint8

BOXES = "cat 0.1 0.2 0.5 0.8; tree 0.6,0.3,0.9,0.9"
FAST = ("--steps", 2, "--scale", 1)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The options that name the tiny model and its conditions."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "weights").mkdir()
    return ("--weights", save_folder(folder / "weights"), "--conditions", save_conditions(folder / "conditions"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a picture, its mask, and everything that is not what it says."""
    folder = tmp_path_factory.mktemp("inputs")
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    mask = np.zeros((80, 120), np.uint8)
    mask[20:60, 30:70] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask * 0).save(folder / "zeros.png")
    Image.fromarray(mask | 255).save(folder / "ones.png")
    Image.fromarray(mask[:, :80]).save(folder / "other_size.png")
    edge = mask * 0
    edge[:, :10] = 255  # cut away with the left of the picture
    Image.fromarray(edge).save(folder / "edge.png")
    Image.new("RGB", (1, 1), "navy").save(folder / "pixel.png")
    Image.new("L", (1, 1), 255).save(folder / "pixel_mask.png")
    Image.new("L", (16, 16), 90).save(folder / "grey.png")
    Image.new("CMYK", (16, 16)).save(folder / "cmyk.tif")
    Image.new("RGBA", (16, 12), (9, 200, 9, 100)).save(folder / "glass.png")
    Image.new("RGB", (300, 300)).save(folder / "large.png")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "picture.png").read_bytes()[:3000])
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    return folder


def drawn(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def close(found, wanted):
    """Equal but for the rounding of sums in another order."""
    return found.shape == wanted.shape and np.abs(found - wanted).max() <= 1


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("sentence", [None, "a red cat at night"])
def test_boxes(cli, places, tmp_path, sentence):  # noqa: F811
    args = () if sentence is None else (sentence,)
    done = cli("draw", *args, "--boxes", BOXES, "--num", 1, "--seed", 5, *FAST, *places)
    assert done.code == 0 and done.out.startswith("picture.png: 1 picture, seed 5"), done.err
    steered = make_steered("layout")
    boxes = [Box("cat", 0.1, 0.2, 0.5, 0.8), Box("tree", 0.6, 0.3, 0.9, 0.9)]
    wanted = steered.from_boxes([boxes], [5], prompts=sentence and [sentence], num_steps=2)
    assert close(drawn(tmp_path / "picture.png"), to_uint8(wanted)[0].astype(int))
    notes = Image.open(tmp_path / "picture.png").text
    assert "boxes cat 0.1 0.2 0.5 0.8; tree 0.6 0.3 0.9 0.9" in notes["Comment"] and "guidance 3" in notes["Comment"]
    assert notes["Description"] == (sentence or "boxes cat 0.1 0.2 0.5 0.8; tree 0.6 0.3 0.9 0.9")
    assert listing(tmp_path) == ["picture.png"]


@pytest.mark.parametrize("sentence", [None, "a red cat at night"])
def test_a_hole(cli, places, inputs, tmp_path, sentence):  # noqa: F811
    args = () if sentence is None else (sentence,)
    hole = ("--inpaint", inputs / "picture.png", inputs / "mask.png")
    done = cli("draw", *args, *hole, "--num", 2, *FAST, *places)
    assert done.code == 0, done.err
    both, given = drawn(tmp_path / "picture.png"), to_uint8(open_picture(inputs / "picture.png", 64))[0].astype(int)
    first, second = both[:, :64], both[:, -64:]
    inside = np.zeros((64, 64), bool)
    inside[16:48, 8:40] = True  # 20 to 60 and 30 to 70 of the middle 80 x 80, at 64
    for each in (first, second):
        assert np.array_equal(each[~inside], given[~inside]), "to the bit"
        assert (each[inside] != given[inside]).mean() > 0.5
    picture, mask = (read(inputs / name, 64) for read, name in ((open_picture, "picture.png"), (open_mask, "mask.png")))
    prompts = sentence and [sentence]
    wanted = make_steered("inpainting").inpaint(picture, mask, [0], prompts=prompts, num_steps=2)
    assert close(first, to_uint8(wanted)[0].astype(int))
    assert not np.array_equal(first, second)
    assert "inpaint picture.png mask.png" in Image.open(tmp_path / "picture.png").text["Comment"]


def test_a_small_picture(cli, places, inputs, tmp_path):  # noqa: F811
    done = cli("draw", "--upscale", inputs / "grey.png", *FAST, *places)
    assert done.code == 0 and "1 picture, seed 0" in done.out, done.err
    wanted = make_steered("upscaling").upscale(open_picture(inputs / "grey.png"), [0], num_steps=2)
    assert close(drawn(tmp_path / "picture.png"), to_uint8(wanted)[0].astype(int))
    assert done.err == ""
    done = cli("draw", "a cat", "--upscale", inputs / "glass.png", "--num", 2, *FAST, *places, "--out", "b.png")
    assert done.code == 0 and drawn(tmp_path / "b.png").shape == (48, 2 * 64 + 2, 3), done.err
    Image.new("RGB", (20, 17), "teal").save(tmp_path / "small.png")
    done = cli("draw", "--upscale", tmp_path / "small.png", "--steps", 1, *places)
    assert done.code == 0 and "4 tiles" in done.err and drawn(tmp_path / "picture.png").shape == (4 * 68, 4 * 80, 3)


def test_a_picture_to_start_from(cli, places, inputs, tmp_path):  # noqa: F811
    start = ("draw", "a red cat", "--from", inputs / "picture.png", "--num", 1, *FAST, *places[:2])
    made = []
    for number, more in enumerate(([], ["--strength", 0], ["--strength", 1], ["--guidance", 1, "--strength", 1])):
        out = tmp_path / f"{number}.png"
        assert cli(*start, *more, "--out", out).code == 0
        made.append(drawn(out))
    pipeline, picture = make_pipeline(), open_picture(inputs / "picture.png", 64)
    wanted = pipeline.redraw(picture, ["a red cat"], [0], strength=0.6, num_steps=2)
    assert close(made[0], to_uint8(wanted)[0].astype(int))
    assert len({each.tobytes() for each in made}) == 4
    assert "from picture.png, strength 0.6" in Image.open(tmp_path / "0.png").text["Comment"]


@pytest.mark.parametrize("name", ["grey.png", "cmyk.tif", "glass.png", "pixel.png", "picture.png"])
def test_any_picture_will_do(cli, places, inputs, tmp_path, name):  # noqa: F811
    done = cli("draw", "a red cat", "--from", inputs / name, "--num", 1, *FAST, *places[:2])
    assert done.code == 0 and drawn(tmp_path / "picture.png").shape == (64, 64, 3), done.err
    mask = "pixel_mask.png" if name == "pixel.png" else name
    done = cli("draw", "--inpaint", inputs / name, inputs / mask, "--num", 1, *FAST, *places)
    assert done.code == 0 or "no hole" in done.err, done.err
    if name != "picture.png":
        done = cli("draw", "--upscale", inputs / name, *FAST, *places)
        width, height = Image.open(inputs / name).size
        assert done.code == 0 and drawn(tmp_path / "picture.png").shape == (4 * height, 4 * width, 3), done.err


def test_a_mask_of_ones_draws_all_of_it(cli, places, inputs, tmp_path):  # noqa: F811
    done = cli("draw", "--inpaint", inputs / "picture.png", inputs / "ones.png", "--num", 1, *FAST, *places)
    given = to_uint8(open_picture(inputs / "picture.png", 64))[0].astype(int)
    assert done.code == 0 and (drawn(tmp_path / "picture.png") != given).mean() > 0.9, done.err


def test_a_huge_picture_is_shrunk_where_that_is_the_sense(cli, places, inputs, tmp_path):  # noqa: F811
    done = cli("draw", "a red cat", "--from", inputs / "huge.png", "--num", 1, *FAST, *places[:2])
    assert done.code == 0 and drawn(tmp_path / "picture.png").shape == (64, 64, 3), done.err


# ---------------------------------------------------------------- what is refused


WRONG = {
    "boxes and a hole": (["--boxes", BOXES, "--inpaint", "a.png", "b.png"], ("--boxes and --inpaint", "together")),
    "all of them": (
        ["--boxes", BOXES, "--inpaint", "a.png", "b.png", "--upscale", "a.png", "--from", "a.png"],
        ("--boxes and --inpaint and --upscale and --from", "together"),
    ),
    "a small picture and a start": (["a cat", "--upscale", "a", "--from", "b"], ("--upscale and --from",)),
    "a strength of nothing": (["a cat", "--strength", 0.5], ("--strength", "--from")),
    "a strength with boxes": (["--boxes", BOXES, "--strength", 0.5], ("--strength", "--from")),
    "too strong": (["a cat", "--from", "a.png", "--strength", 1.5], ("--strength", "1.5", "0 (keep")),
    "no strength": (["a cat", "--from", "a.png", "--strength", "nan"], ("--strength", "nan")),
    "a start without a sentence": (["--from", "a.png"], ("--from", "SENTENCE")),
    "a start with an empty sentence": (["", "--from", "a.png"], ("--from", "SENTENCE")),
    "away from boxes": (["--boxes", BOXES, "--negative", "a dog"], ("--negative", "--boxes")),
    "away from a hole": (["--inpaint", "a", "b", "--negative", "a dog"], ("--negative", "--inpaint")),
    "conditions of a sentence": (["a cat", "--conditions", "."], ("--conditions", "--boxes")),
    "half a hole": (["--inpaint", "a.png"], ("--inpaint", "2")),
    "nothing": ([], ("SENTENCE", "--boxes", "--from")),
    "a kind of file for a folder": (["a cat", "--preset", "sd_v9"], ("--preset", "one file", "FILE.ckpt")),
    "words for a folder that has them": (["a cat", "--tokenizer", "."], ("--tokenizer", "one file")),
    "an average for a folder": (["a cat", "--no-ema"], ("--ema", "one file")),
    "guidance": (["--boxes", BOXES, "--guidance", "inf"], ("--guidance", "finite")),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_go_together(cli, tmp_path, name):  # noqa: F811
    args, words = WRONG[name]
    assert_refused(cli("draw", *args), 2, *words)
    assert listing(tmp_path) == []


BAD_BOXES = {
    "": ("no box",),
    " ; ; ": ("no box",),
    "cat": ("box 1", "cannot be read", "four"),
    "cat 0.1 0.2 0.5": ("box 1", "cannot be read"),
    "cat 0.1 0.2 0.5 0.8 0.9": ("box 1", "cannot be read"),
    "cat 0.1 0.2 half 0.8": ("box 1", "cannot be read"),
    "0.1 0.2 0.5 0.8": ("box 1", "cannot be read"),
    "tree 0.1 0.2 0.5 0.8; catt 0.1 0.2 0.5 0.8": ("box 2", "catt", "did you mean cat?"),
    "zebra 0.1 0.2 0.5 0.8": ("box 1", "zebra", "bicycle"),
    "cat 0.1 0.2 1.5 0.8": ("box 1", "right", "1.5", "0 to 1"),
    "cat -0.1 0.2 0.5 0.8": ("box 1", "left", "-0.1", "0 to 1"),
    "cat 10 20 50 80": ("box 1", "0 to 1"),
    "cat 0.5 0.2 0.1 0.8": ("box 1", "left less than right"),
    "cat 0.1 0.8 0.5 0.2": ("box 1", "top less than bottom"),
    "cat 0.1 0.2 0.1 0.8": ("box 1", "left less than right"),
    "cat nan 0.2 0.5 0.8": ("box 1", "nan", "0 to 1"),
    "cat 0.1 0.2 inf 0.8": ("box 1", "inf", "0 to 1"),
    "cat 0.1 0.2 0.101 0.8": ("too small",),
    ";".join(["cat 0.1 0.2 0.5 0.8"] * 4): ("too many", "4", "at most 3"),
    "cat 0.1 0.2 0.5 0.8 tree 0.1 0.2 0.5 0.8": ("box 1", "cannot be read"),
    "\ud800 0.1 0.2 0.5 0.8": ("box 1",),
}


@pytest.mark.parametrize("text", BAD_BOXES, ids=lambda text: ascii(text)[:40])
def test_boxes_that_cannot_be(cli, tmp_path, monkeypatch, text):  # noqa: F811
    monkeypatch.setattr("ldm_tutor.pipeline.load_pipeline", lambda *args: pytest.fail("loaded"))
    (tmp_path / "picture.png").write_bytes(b"old")
    assert_refused(cli("draw", "--boxes", text), 1, "--boxes", *BAD_BOXES[text])
    assert (tmp_path / "picture.png").read_bytes() == b"old" and listing(tmp_path) == ["picture.png"]


BAD_FILES = {
    "text.png": ("text.png", "no picture"),
    "cut.png": ("cut.png", "broken or cut off"),
    "empty.png": ("empty.png", "is empty"),
    "folder.png": ("folder.png", "a folder"),
    "none.png": ("none.png", "there is no file"),
}


@pytest.mark.parametrize("option", ["--from", "--upscale", "picture", "mask"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_pictures(cli, places, inputs, tmp_path, option, name):  # noqa: F811
    (tmp_path / "picture.png").write_bytes(b"old")
    good, bad = inputs / "picture.png", inputs / name
    args = {
        "--from": ("a red cat", "--from", bad),
        "--upscale": ("--upscale", bad),
        "picture": ("--inpaint", bad, good),
        "mask": ("--inpaint", good, bad),
    }[option]
    more = places[:2] if option == "--from" else places
    assert_refused(cli("draw", *args, *FAST, *more), 1, *BAD_FILES[name])
    assert (tmp_path / "picture.png").read_bytes() == b"old" and listing(tmp_path) == ["picture.png"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--inpaint", "picture.png", "zeros.png"), ("no hole", "bright")),
        (("--inpaint", "picture.png", "edge.png"), ("no hole", "middle square")),
        (("--inpaint", "picture.png", "other_size.png"), ("120 x 80", "80 x 80", "the same")),
        (("--inpaint", "picture.png", "huge.png"), ("10000 x 10000", "the same")),
        (("--upscale", "large.png"), ("300 x 300", "256")),
        (("--upscale", "huge.png"), ("10000 x 10000", "256")),
    ],
)
def test_pictures_of_a_wrong_size(cli, places, inputs, tmp_path, args, words):  # noqa: F811
    option, *files = args
    assert_refused(cli("draw", option, *(inputs / name for name in files), *FAST, *places), 1, *words)
    assert listing(tmp_path) == []


def test_a_bad_place_for_the_result_is_seen_first(cli, inputs, monkeypatch):  # noqa: F811
    monkeypatch.setattr("ldm_tutor.pipeline.load_pipeline", lambda *args: pytest.fail("loaded"))
    for args in (("--boxes", BOXES), ("--upscale", inputs / "none.png")):
        assert_refused(cli("draw", *args, "--out", "a.jpg"), 1, "--out", "a.jpg")


def test_conditions_that_are_not_there_or_not_for_this_model(cli, places, inputs, tmp_path):  # noqa: F811
    weights = places[:2]
    assert_refused(cli("draw", "--boxes", BOXES, *weights, "--conditions", "nowhere"), 1, "nowhere")
    (tmp_path / "empty").mkdir()
    assert_refused(cli("draw", "--boxes", BOXES, *weights, "--conditions", "empty"), 1, "layout.safetensors")
    (tmp_path / "empty" / "layout.safetensors").write_text("broken")
    assert_refused(cli("draw", "--boxes", BOXES, *weights, "--conditions", "empty"), 1, "layout.safetensors")
    one = places[3] / "layout.safetensors"
    assert cli("draw", "--boxes", BOXES, *FAST, *weights, "--conditions", one).code == 0
    (tmp_path / "empty" / "layout.safetensors").write_bytes((places[3] / "upscaling.safetensors").read_bytes())
    assert_refused(cli("draw", "--boxes", BOXES, *weights, "--conditions", "empty"), 1, "upscaling")
    (tmp_path / "notes.txt").write_text("no weights")
    for command in (("draw", "--boxes", BOXES), ("evaluate", "layout", "--num", 2)):
        done = cli(*command, *weights, "--conditions", "notes.txt")
        assert done.code == 1 and "notes.txt" in done.err and "layout.safetensors, or the folder" in done.err, done.err


def test_another_program_s_model_reads_no_boxes(cli, tmp_path):  # noqa: F811
    foreign = tmp_path / "model.ckpt"
    foreign.write_bytes(b"x")
    assert_refused(cli("draw", "--boxes", BOXES, "--weights", foreign), 1, "--boxes", "own model", "model.ckpt")


def test_a_sentence_that_is_too_long_beside_boxes(cli, places):  # noqa: F811
    assert_refused(cli("draw", "red cat " * 40, "--boxes", BOXES, *places), 1, "80 tokens")


def test_unknown_words_are_named_beside_boxes_too(cli, places):  # noqa: F811
    done = cli("draw", "a red zebra", "--boxes", BOXES, "--num", 1, *FAST, *places)
    assert done.code == 0 and "'zebra'" in done.err


def test_the_names_are_those_of_the_package():
    assert set(USUAL) == set(OPTIONS) and set(KIND_OF.values()) <= set(CONDITIONS)
    assert read_boxes(" CAT 0 0 1 1 \n tree 0,0,.5,.5;") == (Box("cat", 0, 0, 1, 1), Box("tree", 0, 0, 0.5, 0.5))
    with pytest.raises(ConfigError, match="no box"):
        read_boxes("\n")
