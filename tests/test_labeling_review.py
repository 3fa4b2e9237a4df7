"""The review page holds every row, worst first, whatever the files are called, and stays quick for large jobs."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_models import blocks, scene
from PIL import Image

from incontext.export import display_colour, write_image, write_indexed
from incontext.labeling.manifest import Recipe, Row
from incontext.labeling.review import ROWS_PER_PART, row_trust, write_review
from incontext.labeling.thumbnails import SIDE, picture_uri, tint_uri
from incontext.types import IGNORE

RECIPE = Recipe("model", "prompt", "settings")
NASTY = 'a </script><script>alert(1)</script> \'ü & "b".png'


class Page(HTMLParser):
    """The parts of a page: tags with their attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "input", "img", "link", "br"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data

    @property
    def data(self) -> dict:
        return json.loads(re.search(r"const DATA = (\{.*\});\n", self.scripts[0]).group(1))

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


def job(folder, count=5, size=(24, 36)):
    """A job's output folder, the rows of its manifest, and the images' paths. Row 0 failed, row 1 found nothing."""
    rows, images = [], {}
    for k in range(count):
        name = NASTY if k == 2 else f"sub/{k:04d}.png"
        images[name] = folder / "photos" / f"{k}.png"
        labels = blocks((1, 2), size, seed=k, side=4) * (k != 1)
        write_image(images[name], scene(labels))
        mask = f"masks/{k}.png"
        if k == 0:
            images[name].write_bytes(b"")
            rows.append(Row(name, "failed", RECIPE, error="it is empty"))
            continue
        write_indexed(folder / "out" / mask, labels)
        ids = (1, 2) if k != 1 else ()
        scores = {id: 0.5 + k / 100 for id in ids}
        rows.append(
            Row(name, "done", RECIPE, f"hash{k}", mask=mask, size=size, ids=ids, scores=scores, score=0.3 + k / 100)
        )
    return folder / "out", rows, images


def review(folder, **options):
    out, rows, images = job(folder, **options)
    write_review(out, rows, images=images, names={1: "cell", 2: "<b>wall</b>"})
    return out, rows, images


def test_one_file_holds_a_small_job(tmp_path):
    out, rows, _ = review(tmp_path)
    page = Page((out / "review.html").read_text(encoding="utf-8"))
    assert not page.open and len(page.ids) == len(set(page.ids))
    assert sorted(path.name for path in out.iterdir()) == ["masks", "review.csv", "review.html"]
    for tag, attributes in page.tags:  # nothing comes from elsewhere
        assert tag != "link" and not {"src", "href"} & attributes.keys(), (tag, attributes)
    data = page.data
    assert [row["image"] for row in data["rows"]] == [rows[k].image for k in (1, 2, 3, 4, 0)]  # failures last
    assert data["classes"][1] == [2, "<b>wall</b>", "#{:02x}{:02x}{:02x}".format(*display_colour(2))]
    assert data["rows"][4]["error"] == "it is empty" and data["rows"][1]["href"].endswith("2.png")
    key, pictures = re.fullmatch(r'addPictures\("(\w+)",(\[.*\])\);\s*', page.scripts[1], re.S).groups()
    pictures = json.loads(pictures)
    assert [key] == data["parts"] and len(pictures) == len(rows) and pictures[4] == ["", ""]
    assert opened(pictures[1][0]).size == (36, 24)


def test_names_cannot_leave_their_strings(tmp_path):
    out, _, _ = review(tmp_path)
    text = (out / "review.html").read_text(encoding="utf-8")
    assert "alert(1)" in text and "<script>alert" not in text and "<b>wall" not in text
    assert len(Page(text).scripts) == 3  # data, pictures, program
    rows = list(csv.DictReader(io.StringIO((out / "review.csv").read_text(encoding="utf-8"))))
    assert rows[1]["image"] == NASTY


def test_every_id_that_the_program_asks_for_is_there(tmp_path):
    out, _, _ = review(tmp_path)
    page = Page((out / "review.html").read_text(encoding="utf-8"))
    asked = set(re.findall(r'\$\("([\w-]+)"\)', page.scripts[2]))
    assert asked <= set(page.ids), asked - set(page.ids)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_program_is_valid(tmp_path):
    out, _, _ = review(tmp_path)
    program = tmp_path / "page.js"
    program.write_text("\n".join(Page((out / "review.html").read_text(encoding="utf-8")).scripts), encoding="utf-8")
    subprocess.run(["node", "--check", program], check=True, capture_output=True)


def test_large_jobs_load_pictures_page_by_page_and_keep_them(tmp_path, monkeypatch):
    out, rows, images = review(tmp_path, count=4 * ROWS_PER_PART + 3, size=(8, 12))
    data = Page((out / "review.html").read_text(encoding="utf-8")).data
    parts = {path.stem: path for path in (out / "review").iterdir()}
    assert set(parts) == set(data["parts"]) and len(parts) == 5
    assert len((out / "review.html").read_bytes()) < 150_000  # no picture in it
    first = re.fullmatch(r"addPictures\(.*?,(.*)\);\n", parts[data["parts"][0]].read_text()).group(1)
    assert len(json.loads(first)) == ROWS_PER_PART
    drawn = []
    original = picture_uri
    monkeypatch.setattr("incontext.labeling.review.picture_uri", lambda image: drawn.append(0) or original(image))
    write_review(out, rows, images=images, names={})
    assert not drawn  # nothing changed
    rows[5] = Row(**{**vars(rows[5]), "sha256": "changed"})
    write_review(out, rows, images=images, names={})
    assert len(drawn) == ROWS_PER_PART
    assert len(list((out / "review").iterdir())) == 5  # the part of before has gone
    write_review(out, rows[:10], images=images, names={})
    assert not (out / "review").exists()


def test_worst_first(tmp_path):
    def row(name, **values):
        return Row(name, "done", RECIPE, ids=(1,), **values)

    rows = [
        row("sure", score=0.9, wholeness=1.0),
        row("torn", score=0.9, wholeness=1.0, disagreement=0.6),
        row("by hand", score=0.1, corrected=True),
        row("unsure", score=0.49, wholeness=1.0),
        row("in pieces", score=0.81, wholeness=0.5),
        Row("broken", "failed", RECIPE),
    ]
    assert [round(row_trust(each), 3) for each in rows] == [0.949, 0.4, 1.0, 0.7, 0.45, 0.0]
    write_review(tmp_path, rows, images={}, names={1: "cell"})
    table = list(csv.DictReader((tmp_path / "review.csv").open(encoding="utf-8")))
    assert [line["image"] for line in table] == ["torn", "in pieces", "unsure", "sure", "by hand", "broken"]
    assert [line["rank"] for line in table] == ["1", "2", "3", "4", "5", "6"]
    assert table[0]["disagreement"] == "0.6000" and table[4]["status"] == "corrected"
    assert table[1]["wholeness"] == "0.5000" and table[4]["wholeness"] == ""
    data = Page((tmp_path / "review.html").read_text(encoding="utf-8")).data
    assert [line["wholeness"] for line in data["rows"]] == [1.0, 0.5, 1.0, 1.0, None, None]


def test_a_mark_does_not_stick_to_what_replaces_the_result(tmp_path):
    def key(**values):
        row = Row("a.png", "done", **{"recipe": RECIPE, "sha256": "x", "score": 0.5, **values})
        write_review(tmp_path, [row], images={}, names={})
        return Page((tmp_path / "review.html").read_text(encoding="utf-8")).data["rows"][0]["key"]

    assert key() == key(score=0.6)
    assert len({key(), key(sha256="y"), key(recipe=Recipe("model", "other", "settings")), key(corrected=True)}) == 4


def test_pictures_and_tints():
    labels = np.zeros((600, 300), np.int32)
    labels[:300], labels[300:320] = 7, IGNORE
    assert opened(picture_uri(scene(labels))).size == (SIDE // 2, SIDE)
    tint = np.asarray(opened(tint_uri(labels)).convert("RGBA"))
    assert tint.shape == (SIDE, SIDE // 2, 4)
    assert tuple(tint[50, 50, :3]) == display_colour(7) and 0 < tint[50, 50, 3] < 200
    assert tint[200:, :, 3].max() == 0  # background and IGNORE are clear
    assert tint[159, 50, 3] == 255  # the outline
    many = np.arange(1, 1 + 300, dtype=np.int32).repeat(4).reshape(30, 40)
    assert np.asarray(opened(tint_uri(many)).convert("RGBA"))[..., 3].min() > 0


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
