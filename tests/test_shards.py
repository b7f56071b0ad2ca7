"""Shards: what goes in comes out, the library reads ours and we read its, and damage costs only what it hits."""

import hashlib
import io
import json
import tarfile

import pytest
import torch
import webdataset
from PIL import Image

from ldm_tutor.data.scenes.datasets import render_scenes
from ldm_tutor.data.shards import (
    ShardReport,
    ShardSample,
    find_shards,
    load_pictures,
    read_shards,
    share_of_shards,
    write_shards,
)
from ldm_tutor.errors import ConfigError, TutorError

NUM = 23


@pytest.fixture(scope="module")
def scenes():
    return render_scenes(NUM, "train", seed=3, resolution=32)


@pytest.fixture
def shards(scenes, tmp_path):
    return write_shards(zip(scenes.pictures, scenes.captions, strict=True), tmp_path / "tars", per_shard=5)


def tar_of(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def png(color=(200, 10, 10), size=(20, 12), mode="RGB"):
    stream = io.BytesIO()
    Image.new(mode, size, color).save(stream, "PNG")
    return stream.getvalue()


def test_pictures_and_captions_come_back_unchanged(scenes, shards):
    assert [path.name for path in shards] == [f"shard-{number:06d}.tar" for number in range(5)]
    report = ShardReport()
    pictures, captions = load_pictures(shards[0].parent, 32, report)
    assert torch.equal(pictures, scenes.pictures) and captions == scenes.captions
    assert list(report.samples.values()) == [5, 5, 5, 5, 3] and report.troubles == []


def test_the_same_samples_make_the_same_bytes(scenes, shards, tmp_path):
    again = write_shards(zip(scenes.pictures, scenes.captions, strict=True), tmp_path / "again", per_shard=5)
    sums = [[hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] for paths in (shards, again)]
    assert sums[0] == sums[1]
    assert len(set(sums[0])) == len(shards)


def test_the_library_reads_ours(scenes, shards):
    found = list(webdataset.WebDataset([str(path) for path in shards], shardshuffle=False).decode("torchrgb"))
    assert [each["txt"] for each in found] == scenes.captions
    assert torch.equal((torch.stack([each["png"] for each in found]) * 255).round().byte(), scenes.pictures)


def test_we_read_the_librarys(scenes, tmp_path):
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        for number, (picture, caption) in enumerate(zip(scenes.pictures, scenes.captions, strict=True)):
            sample = {"__key__": f"a/{number:04d}", "png": picture.permute(1, 2, 0).numpy(), "txt": caption}
            writer.write(sample | {"json": {"number": number}})
    pictures, captions = load_pictures(tmp_path / "theirs.tar", 32)
    assert torch.equal(pictures, scenes.pictures) and captions == scenes.captions
    samples = list(read_shards([tmp_path / "theirs.tar"]))
    assert samples[7].key == "a/0007" and json.loads(samples[7].files["json"]) == {"number": 7}


def test_processes_share_the_shards_without_overlap(shards):
    parts = [share_of_shards(shards, rank, 2) for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == shards and not set(parts[0]) & set(parts[1])
    with pytest.raises(ConfigError, match="rank; given: 2; expected: 0 to 1"):
        share_of_shards(shards, 2, 2)


def test_shards_are_found_by_folder_file_and_pattern(shards):
    folder = shards[0].parent
    (folder / ".shard-000009.tar.7.tmp").write_bytes(b"half")
    (folder / ".hidden.tar").write_bytes(b"half")
    assert find_shards(folder) == shards
    assert find_shards(str(shards[2])) == [shards[2]]
    assert find_shards(f"{folder}/shard-{{000001..000003}}.tar") == shards[1:4]
    with pytest.raises(ConfigError, match="no shard at .*shard-000005.tar"):
        find_shards(f"{folder}/shard-{{000001..000009}}.tar")
    with pytest.raises(ConfigError, match="no shard at"):
        find_shards(folder / "nothing.tar")
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no shards in .*; expected: files that end in \.tar"):
        find_shards(folder / "empty")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 0.5, 0.75, 0.97])
def test_a_shard_cut_off_gives_what_is_before_the_cut(scenes, shards, share):
    with tarfile.open(shards[1]) as tar:
        end = tar.getmembers()[-1].offset_data + tar.getmembers()[-1].size  # behind it are zeros only
    shards[1].write_bytes(shards[1].read_bytes()[: int(share * end)])
    report = ShardReport()
    pictures, captions = load_pictures(shards[0].parent, 32, report)
    good = report.samples[str(shards[1])]
    assert captions == scenes.captions[: 5 + good] + scenes.captions[10:]
    assert torch.equal(pictures, torch.cat([scenes.pictures[: 5 + good], scenes.pictures[10:]]))
    assert good <= 5 * share + 1 and (share < 0.9 or good == 4)
    (trouble,) = report.troubles
    assert "shard-000001.tar: cut off or damaged after" in trouble and f"after {good} samples" in trouble


def test_a_cut_between_two_files_is_noticed(shards):
    with tarfile.open(shards[0]) as tar:
        third = tar.getmembers()[4]
    shards[0].write_bytes(shards[0].read_bytes()[: third.offset])
    report = ShardReport()
    found = list(read_shards(shards[:1], report))
    assert [each.key for each in found] == ["000000000"]  # whether 1 was whole, nobody can know
    assert "the end mark is missing" in report.troubles[0]


def test_the_writer_refuses_what_it_cannot_write(scenes, shards, tmp_path):
    pair = [(scenes.pictures[0], "a cat")]
    with pytest.raises(ConfigError, match="is there already"):
        write_shards(pair, shards[0].parent)
    with pytest.raises(ConfigError, match="per_shard; given: 0"):
        write_shards(pair, tmp_path / "a", per_shard=0)
    with pytest.raises(ConfigError, match="name; given: '../x'"):
        write_shards(pair, tmp_path / "b", name="../x")
    with pytest.raises(ConfigError, match=r"picture 0; given: .*float32.*expected: uint8"):
        write_shards([(scenes.pictures[0].float(), "a cat")], tmp_path / "c")
    assert write_shards([], tmp_path / "d") == []


def test_a_break_while_writing_leaves_whole_shards_only(scenes, tmp_path):
    def breaking():
        yield from zip(scenes.pictures[:7], scenes.captions[:7], strict=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(breaking(), tmp_path / "tars", per_shard=5)
    assert [path.name for path in (tmp_path / "tars").iterdir()] == ["shard-000000.tar"]
    assert len(list(read_shards(find_shards(tmp_path / "tars")))) == 5


BAD = {
    "000.png": png(),
    "000.txt": b"a red square",
    "001.png": b"\x89PNG\r\n\x1a\nand then nothing",
    "001.txt": b"a broken picture",
    "002.png": png(),
    "002.txt": b"caf\xe9",
    "003.png": png(),
    "004.txt": b"no picture at all",
    "005.jpg": png((0, 200, 0, 255), (9, 30), "RGBA"),
    "005.json": b'{"caption": "a green one", "source": 1}',
    "006.png": png(),
    "006.json": b"{not json",
    "007.png": png(40, (6, 6), "L"),
    "007.txt": "ein gr\u00fcner K\u00e4fer \u732b".encode(),
    "008.png": png(),
    "008.txt": b"  \n",
    "009.png": png(),
    "009.json": b"[1, 2]",
    "010.png": png(),
    "010.json": b'"a picture with text"',
    "011.png": png(),
    "011.json": b"7",
    "012.png": png(),
    "012.json": b'["caption"]',
}


def test_bad_samples_are_reported_by_name_and_the_rest_is_used(tmp_path):
    report = ShardReport()
    pictures, captions = load_pictures(tar_of(tmp_path / "bad.tar", BAD), 16, report)
    assert captions == ["a red square", "a green one", "ein gr\u00fcner K\u00e4fer \u732b"]
    assert pictures.shape == (3, 3, 16, 16) and pictures[1, 1].float().mean() > 190
    told = "\n".join(report.troubles)
    assert len(report.troubles) == 10
    for key in ("001", "002", "003", "004", "006", "008", "009", "010", "011", "012"):
        assert f"bad.tar: {key}" in told


def test_a_file_that_comes_twice_costs_its_sample(tmp_path):
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("0.txt", "0.txt", "1.txt"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    report = ShardReport()
    assert [each.key for each in read_shards([path], report)] == ["1"]
    assert "0 has a file .txt twice" in report.troubles[0]


def test_what_is_no_tar_is_an_error_only_if_nothing_else_is_there(shards, tmp_path):
    bad = tmp_path / "no.tar"
    bad.write_bytes(b"this is a letter, not a tar" * 100)
    report = ShardReport()
    assert len(list(read_shards([bad, shards[0]], report))) == 5
    assert "no.tar: cut off or damaged after 0 samples" in report.troubles[0]
    with pytest.raises(TutorError, match="no readable sample in 1 shards"):
        list(read_shards([bad]))
    with pytest.raises(TutorError, match="no sample with picture and caption"):
        load_pictures(tar_of(tmp_path / "texts.tar", {"0.txt": b"only words"}), 16)


def test_nothing_is_unpacked_and_folders_belong_to_the_key(tmp_path):
    files = {"../evil.txt": b"one", "/etc/evil.txt": b"two", "a/b.c/0.seg.PNG": b"three"}
    found = list(read_shards([tar_of(tmp_path / "odd.tar", files)]))
    assert [each.key for each in found] == ["../evil", "/etc/evil", "a/b.c/0"]
    assert list(found[2].files) == ["seg.png"]
    assert [path.name for path in tmp_path.rglob("*")] == ["odd.tar"]


def test_any_files_can_be_written(tmp_path):
    samples = [ShardSample("x/1", {"jpg": png(), "txt": b"one", "boxes.json": b"[]"})]
    (path,) = write_shards(samples, tmp_path, name="boxes")
    (found,) = read_shards([path])
    assert found == ShardSample("x/1", samples[0].files, "boxes-000000.tar")
    assert found.picture == samples[0].files["jpg"] and found.caption == "one"
