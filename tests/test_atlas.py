"""The pictures of the classes: where averages are put, what is drawn, and what is not there to be drawn."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsort._checks import InputError
from fastsort.invariants.averages import ClassAverages
from fastsort.invariants.classes import Classification
from fastsort.invariants.map import ParticleMap
from fastsort.invariants.ranking import ClassRanking
from fastsort.report import atlas, montage
from fastsort.report.atlas import draw_map
from fastsort.report.class_looks import class_tiles, style_of
from fastsort.report.montage import draw_classes, montage_columns
from fastsort.report.placement import place_tiles

pytest.importorskip("matplotlib")

BOX = 24


def classification(n_classes, n=200, *, junk=1, embedding="umap", seed=0):
    """Blobs that lie on a circle, one a class, each with a picture of its own; the last classes are junk."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % n_classes if n_classes else np.full(n, -1)
    angle = 2 * np.pi * label / max(n_classes, 1)
    coordinates = 5 * np.column_stack([np.cos(angle), np.sin(angle)]) + 0.5 * rng.normal(size=(n, 2))
    pictures = rng.normal(size=(n_classes, BOX, BOX))
    count, zeros = np.bincount(label[label >= 0], minlength=n_classes), np.zeros(n_classes)
    frc = np.tile(np.linspace(1, 0, BOX // 2 + 1), (n_classes, 1))
    return Classification(
        label.astype(np.intp),
        np.zeros(n),
        ParticleMap(
            coordinates.astype(np.float32),
            label.astype(np.intp),
            np.ones(n, dtype=np.float32),
            n_classes,
            7,
            np.empty(0),
            embedding,
        ),
        ClassAverages(
            pictures.astype(np.float32),
            count.astype(np.intp),
            zeros.astype(np.float32),
            np.linspace(5, 20, n_classes).astype(np.float32),
            frc.astype(np.float32),
            np.zeros(n, dtype=np.float32),
            np.zeros((n, 2), dtype=np.float32),
            np.zeros(n, dtype=np.float32),
        ),
        ClassRanking(
            np.linspace(0, 2, n_classes),
            np.arange(n_classes) >= n_classes - junk,
            zeros,
            zeros,
            zeros,
            zeros,
            zeros,
            zeros,
            zeros,
        ),
        np.zeros(n_classes, dtype=np.intp),
    )


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


@pytest.fixture
def texts(monkeypatch):
    """All that is written while a test draws."""
    from matplotlib.text import Text

    written = []
    draw = Text.draw

    def noted(self, *args, **kwargs):
        written.append(self.get_text())
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", noted)
    return written


@st.composite
def placements(draw):
    count = draw(st.integers(0, 25))
    tile = draw(st.tuples(st.integers(2, 7), st.integers(2, 7)))
    # Five rows and columns of tiles at least, and some more steps.
    area = [5 * side + draw(st.integers(0, 12)) for side in tile]
    place = st.tuples(*(st.floats(-3, side + 3) for side in area))
    anchors = np.array(draw(st.lists(place, min_size=count, max_size=count))).reshape(-1, 2)
    seed = draw(st.integers(0, 100))
    ink = 3.0 * (np.random.default_rng(seed).random(area) < draw(st.floats(0, 1)))
    return anchors, tile, ink


@settings(max_examples=60, deadline=None)
@given(placements())
def test_tiles_neither_overlap_nor_leave_the_area(case):
    anchors, tile, ink = case
    corners = place_tiles(anchors, tile, ink)
    assert corners.shape == (len(anchors), 2)
    covered = np.zeros(ink.shape, dtype=int)
    for column, row in corners:
        assert 0 <= column <= ink.shape[0] - tile[0]
        assert 0 <= row <= ink.shape[1] - tile[1]
        covered[column : column + tile[0], row : row + tile[1]] += 1
    assert covered.max(initial=0) <= 1
    np.testing.assert_array_equal(corners, place_tiles(anchors, tile, ink))


def test_a_lone_tile_lies_on_its_point_unless_something_is_there():
    ink = np.zeros((40, 30))
    assert place_tiles(np.array([[20.0, 15.0]]), (4, 6), ink).tolist() == [[18, 12]]
    ink[16:24, 10:20] = 5
    (column, row), *_ = place_tiles(np.array([[20.0, 15.0]]), (4, 6), ink).tolist()
    assert ink[column : column + 4, row : row + 6].sum() == 0
    # Straight to the side, where it is nearest.
    assert column in (12, 24)
    assert row == 12


def test_leaders_do_not_cross():
    anchors = np.array([[10.0, 20.0], [30.0, 20.0], [10.0, 21.0], [30.0, 21.0]])
    ink = np.zeros((40, 40))
    ink[6:34, 14:27] = 9
    middles = place_tiles(anchors, (5, 5), ink) + 2.5

    def side(a, b, c):
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    for i in range(4):
        for j in range(i):
            (a, b), (c, d) = (anchors[i], middles[i]), (anchors[j], middles[j])
            assert not (side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0)


@pytest.mark.parametrize("width", [1472, 1362])
@pytest.mark.parametrize("count", [1, 10, 20, atlas.MAX_PICTURES])
def test_the_map_holds_all_pictures(width, count):
    steps = (width // 10, 103)
    columns, rows = atlas._steps(atlas._side(count, steps))
    assert count * columns * rows <= 0.25 * steps[0] * steps[1]


@pytest.mark.parametrize("embedding", ["umap", "pca"])
@pytest.mark.parametrize("color", ["class", "score"])
def test_the_map_is_drawn_the_same_each_time(tmp_path, texts, embedding, color):
    found = classification(6, embedding=embedding)
    for name in "ab":
        draw_map(tmp_path / name, found, 1.5, color)
    assert png_size(tmp_path / "a") == (1600, 1200)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {"1", "5", "6 junk"} <= set(texts)
    assert "200 images in 6 classes, 1 of them junk (33 images)" in texts
    assert ("UMAP 1" if embedding == "umap" else "principal component 1") in texts
    assert ("score" in texts) == (color == "score")
    assert any("24 px (36 Å) wide" in text for text in texts)


def test_another_map_makes_another_picture(tmp_path):
    found = classification(6)
    moved = found.map._replace(coordinates=found.map.coordinates * np.float32([1, -0.5]))
    values = np.linspace(0, 1, 200)
    values[:50] = np.nan
    draw_map(tmp_path / "a.png", found, 1.5)
    draw_map(tmp_path / "b.png", found._replace(map=moved), 1.5)
    draw_map(tmp_path / "c.png", found, 1.5, "defocus", values=values, label="defocus ($A)")
    draw_map(tmp_path / "d.png", found, 1.5, "defocus", values=values[::-1], label="defocus ($A)")
    images = [pixels(tmp_path / f"{name}.png") for name in "abcd"]
    for i, j in ((0, 1), (0, 2), (2, 3)):
        assert (np.abs(images[i] - images[j]).max(axis=2) > 0.1).mean() > 0.002


def test_colours_of_points_and_labels_agree():
    found = classification(24, junk=4)
    style = style_of(found, None)
    np.testing.assert_array_equal(style.of_image, style.of_class[found.label])
    looks = {(tuple(color), shape) for color, shape in zip(style.of_class.tolist(), style.shape, strict=True)}
    # Three greys for four classes of junk; all others differ.
    assert len(looks) == 20 + 3
    assert set(style.shape[-4:]) == {"x"}
    assert "x" not in style.shape[:-4]
    assert np.ptp(style.of_class[-4:, :3], axis=1).max() == 0


def test_values_must_fit(tmp_path):
    found = classification(3)
    with pytest.raises(InputError, match="one number for each of the 200 images"):
        draw_map(tmp_path / "a.png", found, 1.5, "defocus", values=np.zeros(7))
    with pytest.raises(InputError, match=r"'class' or 'score'.*'defocus'"):
        draw_map(tmp_path / "a.png", found, 1.5, "defocus")


def test_distant_images_are_drawn_on_the_frame(tmp_path, texts):
    found = classification(3, n=1000)
    found.map.coordinates[:2] = (1e6, -1e6)
    draw_map(tmp_path / "a.png", found, 1.5)
    assert any("2 images beyond the frame, drawn on it" in text for text in texts)
    view = atlas._view(found.map.coordinates, 1400, 1000)
    assert np.ptp(view.places[2:], axis=0).min() > 300


def test_no_more_points_and_pictures_than_can_be_seen(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(atlas, "MAX_POINTS", 50)
    monkeypatch.setattr(atlas, "MAX_PICTURES", 3)
    found = classification(5, n=203)
    draw_map(tmp_path / "a.png", found, np.nan)
    assert any(text.startswith("50 points drawn; averages of the 3 largest classes") for text in texts)
    # Classes 0 to 2 have one member more than the others.
    assert {"1", "2", "3"} <= set(texts)
    assert not {"4", "5 junk"} & set(texts)


@pytest.mark.parametrize(("count", "columns"), [(0, 5), (1, 5), (10, 5), (20, 7), (60, 9), (200, 9)])
def test_columns_of_the_montage(count, columns):
    assert montage_columns(count) == columns
    assert (1600 - 64) / columns - 14 >= 150


@pytest.mark.parametrize("count", [1, 7, 30])
def test_the_montage_shows_every_class(tmp_path, texts, count):
    draw_classes(tmp_path / "a.png", classification(count), 1.5)
    width, height = png_size(tmp_path / "a.png")
    rows = -(-count // montage_columns(count))
    assert width == 1600
    assert rows * 150 < height < rows * 400 + 100
    assert set(map(str, range(1, count + 1))) <= set(texts)
    assert texts.count("junk") == 1
    assert sum(" %)\n" in text for text in texts) == count
    # 24 px of 1.5 A are 36 A.
    assert "10 Å" in texts


def test_what_the_montage_says_of_a_class(tmp_path, texts):
    found = classification(4)
    found.averages.resolution[1:] = (np.inf, np.nan, 7)
    found.ranking.score[3] = np.inf
    draw_classes(tmp_path / "a.png", found, 1.5)
    assert [text for text in texts if "score " in text and "%" in text] == [
        "50 (25.0 %)\n5.0 Å, score 0.00",
        "50 (25.0 %)\n-, score 0.67",
        "50 (25.0 %)\n-, score 1.33",
        "50 (25.0 %)\n7.0 Å, score -",
    ]
    texts.clear()
    draw_classes(tmp_path / "b.png", found, np.nan)
    assert "50 (25.0 %)\n5.0 px, score 0.00" in texts
    assert not any("Å" in text for text in texts)


def test_the_montage_ends_with_the_first_classes(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(montage, "MAX_TILES", 12)
    draw_classes(tmp_path / "a.png", classification(15, junk=0), 1.5)
    assert "12" in texts
    assert "13" not in texts
    assert any(text.startswith("the first 12 of 15 classes") for text in texts)


def test_tiles_are_grey_where_nothing_is_and_not_filtered_to_nothing():
    found = classification(3)
    found.averages.averages[1] = 0
    found.averages.frc[2] = 0
    tiles = class_tiles(found, np.arange(3))
    assert tiles.min() == 0
    assert tiles.max() == 1
    np.testing.assert_array_equal(tiles[1], 0.5)
    inside = np.s_[8:16, 8:16]
    seen = [(tiles[k][inside].ravel(), found.averages.averages[k][inside].ravel()) for k in (0, 2)]
    agree = [np.corrcoef(*pair)[0, 1] for pair in seen]
    assert 0.3 < agree[0] < agree[1]
    assert agree[1] > 0.98


def test_another_average_makes_another_tile(tmp_path):
    found = classification(5)
    draw_classes(tmp_path / "a.png", found, 1.5)
    found.averages.averages[2] = found.averages.averages[2].T
    draw_classes(tmp_path / "b.png", found, 1.5)
    changed = np.argwhere((pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")).any(axis=2))
    assert len(changed) > 10_000
    # The third of five columns.
    assert 32 + 2 * 310 <= changed[:, 1].min()
    assert changed[:, 1].max() < 32 + 3 * 310


def no_class():
    return classification(0)


def one_class():
    return classification(1, junk=0)


def all_junk():
    return classification(3, junk=3)


def one_image():
    return classification(1, n=1)


def no_place():
    found = classification(3)
    found.map.coordinates[:] = np.nan
    return found


def some_places():
    found = classification(3)
    found.map.coordinates[:40] = np.nan
    found.label[:60] = -1
    # A class whose members are nowhere.
    found.map.coordinates[found.label == 1] = np.nan
    return found


def same_place():
    found = classification(3)
    found.map.coordinates[:] = (1e4, -3)
    return found


def on_a_line():
    found = classification(3)
    found.map.coordinates[:, 1] = 0
    return found


def nearly_same_place():
    found = classification(3)
    found.map.coordinates[1:] = 0
    return found


def empty():
    return classification(0, n=0)


def flat():
    found = classification(4)
    found.averages.averages[:] = 0
    found.averages.frc[:] = 0
    found.averages.resolution[:] = np.nan
    return found


UGLY = [
    no_class,
    one_class,
    all_junk,
    one_image,
    no_place,
    some_places,
    same_place,
    on_a_line,
    nearly_same_place,
    empty,
    flat,
]


@pytest.mark.parametrize("make", UGLY)
@pytest.mark.parametrize("embedding", ["umap", "pca"])
def test_ugly_input_is_drawn(tmp_path, make, embedding):
    found = make()
    found = found._replace(map=found.map._replace(embedding=embedding))
    draw_map(tmp_path / "map.png", found, np.nan, "class" if embedding == "umap" else "score")
    assert png_size(tmp_path / "map.png") == (1600, 1200)
    if embedding == "umap":
        draw_classes(tmp_path / "classes.png", found, np.nan)
        assert png_size(tmp_path / "classes.png")[0] == 1600


def test_values_that_are_all_the_same_or_none(tmp_path):
    found = classification(3)
    for value in (0.0, 7.5, np.nan, np.inf):
        draw_map(tmp_path / "map.png", found, 1.5, "value", values=np.full(200, value))
        assert png_size(tmp_path / "map.png") == (1600, 1200)
