"""Frame i is the same picture in every reader, and damage costs no more than what is damaged."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from video_clips import SIZE, number_of, numbered, turn, write_clip, write_sound

from incontext.video.decord_frames import DecordFrames
from incontext.video.folder_frames import FolderFrames
from incontext.video.frames import FrameError, VideoError, read_frames
from incontext.video.pyav_frames import PyavFrames

COUNT = 40
B_FRAMES = {"bf": "3", "g": "12", "x264-params": "b-adapt=0:scenecut=0"}

CLIPS = {
    "steady": {},
    "b-frames": {"options": B_FRAMES},
    "open gop": {"options": {**B_FRAMES, "x264-params": "b-adapt=0:open-gop=1:scenecut=0"}},
    "variable rate": {"options": B_FRAMES, "times": np.cumsum([4, 1, 9, 2] * (COUNT // 4)).tolist()},
    "turned": {"options": B_FRAMES},
    "mpeg4": {"codec": "mpeg4", "options": {"bf": "2"}},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, pictures = tmp_path_factory.mktemp("clips"), [numbered(k) for k in range(COUNT)]
    made = {name: write_clip(folder / f"{name}.mp4", pictures, **how) for name, how in CLIPS.items()}
    turn(made["turned"])
    made["mkv"] = write_clip(folder / "m.mkv", pictures, options=B_FRAMES)
    made["avi"] = write_clip(folder / "a.avi", pictures, codec="mpeg4")
    made["raw"] = write_clip(folder / "r.h264", pictures, options=B_FRAMES, format="h264")
    return made


def upright(picture: np.ndarray, name: str) -> np.ndarray:
    return np.rot90(picture) if name == "turned" else picture


@pytest.mark.parametrize("name", [*CLIPS, "mkv", "avi", "raw"])
def test_frame_i_is_frame_i_in_every_reader_and_any_order(clips, name):
    readers = {reader: read_frames(clips[name], reader=reader) for reader in ("auto", "pyav")}
    for frames in readers.values():
        assert len(frames) == COUNT and frames.size == (SIZE[::-1] if name == "turned" else SIZE)
        orders = (range(COUNT), range(COUNT - 1, -1, -1), [17, 3, 39, 0, 13, 14, 12, 25])
        for order in orders:
            assert [number_of(upright(frames.read(k), name)) for k in order] == list(order)
        assert [number_of(upright(frame, name)) for frame in frames] == list(range(COUNT))
        backwards = [(k, number_of(upright(frame, name))) for k, frame in frames.stream(range(COUNT - 1, -1, -3))]
        assert backwards == [(k, k) for k in range(COUNT - 1, -1, -3)]
    picture = readers["pyav"].read(7).astype(int)
    assert np.abs(readers["auto"].read(7) - picture).mean() < 3
    assert np.abs(upright(picture, name) - numbered(7)).mean() < 12
    corner = upright(picture, name)[2:6, 2:6].mean((0, 1))
    assert corner[0] > 180 and corner[1] < 110  # red and upright: neither turned nor mirrored


@pytest.mark.parametrize("name", ["steady", "b-frames", "variable rate"])
def test_decord_reads_what_it_agrees_on(clips, name):
    pytest.importorskip("decord")
    assert isinstance(read_frames(clips[name]), DecordFrames)


def test_times_are_those_of_the_file(clips):
    frames = read_frames(clips["variable rate"])
    expected = np.cumsum([4, 1, 9, 2] * (COUNT // 4)) / 100
    np.testing.assert_allclose([frames.time(k) for k in range(COUNT)], expected - expected[0], atol=2e-3)
    assert read_frames(clips["steady"]).rate == pytest.approx(25)
    part = frames[10:30:5]
    assert len(part) == 4 and [number_of(frame) for frame in part] == [10, 15, 20, 25]
    assert part.time(1) == pytest.approx(expected[15] - expected[10], abs=2e-3) and part.label(1) == "00015"
    assert [number_of(frame) for _, frame in part.stream(range(3, -1, -1))] == [25, 20, 15, 10]
    assert number_of(frames[-1]) == COUNT - 1 and [number_of(frame) for frame in frames[::-1][:2]] == [39, 38]


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    for k in range(12):
        Image.fromarray(numbered(k)).save(tmp_path / f"frame{k}.png")
    (tmp_path / "note.txt").touch()
    frames = read_frames(tmp_path)
    assert isinstance(frames, FolderFrames) and len(frames) == 12 and frames.label(10) == "frame10"
    assert [number_of(frame) for frame in frames] == list(range(12))


def test_numbers_that_do_not_count_are_letters(tmp_path):
    for name in ("5²6", "5²10", "4"):
        Image.fromarray(numbered(0)).save(tmp_path / f"{name}.png")
    frames = read_frames(tmp_path)
    assert [frames.label(k) for k in range(3)] == ["4", "5²6", "5²10"]


@pytest.mark.parametrize("other", ["0.png", "0.JPEG"])
def test_frames_whose_masks_would_have_one_name_are_refused(tmp_path, other):
    for name in ("0.jpg", other, "1.jpg"):
        Image.fromarray(numbered(0)).save(tmp_path / name)
    with pytest.raises(VideoError, match=r"names differ before the suffix.*got 0\.(jpg and 0\.png|JPEG and 0\.jpg)"):
        read_frames(tmp_path)


def test_a_bad_picture_costs_itself_alone(tmp_path):
    for k in range(5):
        Image.fromarray(numbered(k, (24, 32) if k == 3 else SIZE)).save(tmp_path / f"{k}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:70])
    got = [frame for _, frame in read_frames(tmp_path).stream(range(5))]
    assert [number_of(got[k]) for k in (0, 2, 4)] == [0, 2, 4]
    assert isinstance(got[1], FrameError) and got[1].index == 1 and "1.png" in str(got[1])
    assert isinstance(got[3], FrameError) and "3.png: expected 64 x 48 pixels as in the first" in str(got[3])
    with pytest.raises(FrameError):
        list(read_frames(tmp_path))


@pytest.mark.parametrize("reader", ["auto", "pyav"])
def test_a_damaged_frame_moves_no_other(tmp_path, reader):
    path = write_clip(tmp_path / "c.mkv", [numbered(k) for k in range(20)], codec="mjpeg")
    data = bytearray(path.read_bytes())
    starts = [k for k in range(len(data)) if data[k : k + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 20
    data[starts[7] : starts[8] - 40] = bytes(starts[8] - 40 - starts[7])
    path.write_bytes(data)
    got = dict(read_frames(path, reader=reader).stream(range(20)))
    assert isinstance(got[7], FrameError) and "frame 7" in str(got[7])
    assert [number_of(got[k]) for k in range(20) if k != 7] == [k for k in range(20) if k != 7]


def test_a_file_that_was_cut_off_gives_what_it_has(tmp_path):
    path = write_clip(tmp_path / "c.mkv", [numbered(k) for k in range(COUNT)], options={"g": "5"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    frames = read_frames(path)
    assert 5 < len(frames) < COUNT
    got = [frame for _, frame in frames.stream(range(len(frames)))]
    assert [number_of(frame) for frame in got[:-1]] == list(range(len(frames) - 1))


@pytest.mark.parametrize(
    "second", [{"options": B_FRAMES}, {"options": {"bf": "0"}, "times": [0, *range(2, 38, 4)]}], ids=["same", "between"]
)
def test_videos_put_together_end_to_end_keep_all_frames(tmp_path, second):
    """In the second half times start again: the same ones, or others in between."""
    parts = []
    for half, how in enumerate(({"options": B_FRAMES}, second)):
        clip = write_clip(tmp_path / f"{half}.ts", [numbered(k + 10 * half) for k in range(10)], **how)
        parts.append(clip.read_bytes())
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    frames = read_frames(tmp_path / "both.ts")
    assert [number_of(frame) for frame in frames] == list(range(20))
    assert [number_of(frames[k]) for k in (15, 3, 12)] == [15, 3, 12] and frames.time(19) > frames.time(18)


def test_what_is_no_video_is_named(tmp_path):
    with pytest.raises(VideoError, match="no moving pictures in it, only audio"):
        read_frames(write_sound(tmp_path / "song.m4a"))
    with pytest.raises(VideoError, match=r"gone\.mp4: expected a video file or a folder"):
        read_frames(tmp_path / "gone.mp4")
    whole = write_clip(tmp_path / "c.mp4", [numbered(k) for k in range(9)])
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])  # the index stands at the end
    with pytest.raises(VideoError, match="cannot be opened.*cut off"):
        read_frames(whole)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="found none in it"):
        read_frames(tmp_path / "empty")
    with pytest.raises(ValueError, match="reader: expected one of"):
        read_frames(whole, reader="opencv")


def test_without_decord_files_open_all_the_same(clips, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    assert isinstance(read_frames(clips["steady"]), PyavFrames)
    with pytest.raises(VideoError, match="not installed"):
        read_frames(clips["steady"], reader="decord")
