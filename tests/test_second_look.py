"""A second look at kept picks: figures are not trusted where the micrographs show no particles there."""

from __future__ import annotations

import base64
import json
import re

import mrcfile
import numpy as np
import pytest
import starfile
from test_page import make_result

import fastsort as fs
from fastsort import sort
from fastsort.decide.decoys import Estimate, EstimatedErrors
from fastsort.decide.second_look import look_again
from fastsort.report.folder import listed_folder
from fastsort.report.page import page_files, write_page
from fastsort.report.page_micrographs import micrographs_at_hand

DIAMETER, SIDE, STEP = 14, 360, 40
SURE = EstimatedErrors(*[Estimate(0.95, 0.9, 1.0)] * 4, {}, {}, True, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three micrographs of dark disks in noise; picks of all disks, and picks of places between them."""
    folder = tmp_path_factory.mktemp("picked")
    row, column = np.mgrid[:SIDE, :SIDE]
    for number in range(3):
        rng = np.random.default_rng(number)
        image = rng.normal(size=(SIDE, SIDE)).astype(np.float32)
        places = np.stack(np.mgrid[20:SIDE:STEP, 20:SIDE:STEP], axis=-1).reshape(-1, 2)
        places = places + rng.integers(-6, 7, places.shape)
        for y, x in places:
            image[np.hypot(row - y, column - x) < DIAMETER / 2] -= 1.5
        with mrcfile.new(folder / f"m{number}.mrc") as file:
            file.set_data(image)
            file.voxel_size = 4.0
        for name, shift in (("disks", 0), ("gaps", STEP // 2)):
            (folder / name).mkdir(exist_ok=True)
            table = "".join(f"{x + shift} {y + shift}\n" for y, x in places)
            star = f"data_\n\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n{table}"
            (folder / name / f"m{number}.star").write_text(star)
    return folder


def picks_in(folder, picks):
    return fs.open_particles((str(folder / "*.mrc"), str(folder / picks / "*.star")), box=24)


@pytest.fixture(scope="module")
def verdict(folder):
    """The verdict on picks of disks before the micrographs are asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sort, "look_again", lambda particles, result, **more: result)
        return fs.sort_particles(picks_in(folder, "disks"), method="radial")


@pytest.fixture
def looked_at(folder, verdict):
    def look(picks, kept=1.0, errors=SURE, diameter=float(DIAMETER), **more):
        particles = picks_in(folder, picks)
        keep = np.arange(len(particles)) < kept * len(particles)
        return look_again(particles, verdict._replace(errors=errors, keep=keep, diameter_px=diameter), **more)

    return look


def test_figures_stand_where_the_micrographs_show_particles(looked_at):
    assert looked_at("disks").errors is SURE


def test_figures_are_not_known_where_the_micrographs_show_none(looked_at):
    errors = looked_at("gaps").errors
    assert not errors.known
    assert "searched anew" in errors.remark
    assert errors.precision == SURE.precision


def test_size_is_found_where_it_is_unknown(looked_at):
    assert not looked_at("gaps", diameter=np.nan).errors.known


def test_nothing_is_said_where_much_is_rejected_or_figures_are_not_known_anyway(looked_at):
    assert looked_at("gaps", kept=0.8).errors is SURE
    assert looked_at("gaps", check_errors=False).errors is SURE
    unknown = SURE._replace(known=False, remark="no idea")
    assert looked_at("gaps", errors=unknown).errors is unknown
    assert looked_at("gaps", errors=None).errors is None


def test_nothing_is_said_of_images_without_micrographs(verdict):
    particles = fs.open_particles(np.zeros((len(verdict.keep), 24, 24), np.float32))
    assert look_again(particles, verdict) is verdict


ICE = (120, 200, 45)


@pytest.fixture(scope="module")
def with_ice(folder, tmp_path_factory):
    """The same micrographs, the second with a piece of ice, and picks of disks; which of these lie on ice."""
    icy = tmp_path_factory.mktemp("icy")
    row, column = np.mgrid[:SIDE, :SIDE]
    (icy / "disks").mkdir()
    for number in range(3):
        with mrcfile.open(folder / f"m{number}.mrc") as file:
            image = np.array(file.data)
        if number == 1:
            image[np.hypot(row - ICE[0], column - ICE[1]) < ICE[2]] -= 8
        with mrcfile.new(icy / f"m{number}.mrc") as file:
            file.set_data(image)
            file.voxel_size = 4.0
        (icy / "disks" / f"m{number}.star").write_text((folder / "disks" / f"m{number}.star").read_text())
    store = picks_in(icy, "disks").store
    away = np.hypot(store.y - ICE[0], store.x - ICE[1])
    return icy, (store.micrograph_of == 1) & (away < ICE[2] - 5), away > ICE[2] + 15


def test_picks_on_ice_are_rejected_as_contamination_whatever_their_score(with_ice, verdict):
    icy, on_ice, away = with_ice
    particles = picks_in(icy, "disks")
    store = particles.store
    away = away | (store.micrograph_of != 1)
    before = verdict._replace(
        keep=np.ones(len(particles), bool), score=np.zeros(len(particles)), threshold=1.0
    )
    results = [look_again(particles, before, n_jobs=n) for n in (1, 2)]
    after = results[0]
    assert on_ice.sum() >= 3 and not after.keep[on_ice].any()
    assert (after.reason[on_ice] == "contamination").all() and np.isinf(after.score[on_ice]).all()
    assert (after.junk_probability[on_ice] == 1).all()
    assert after.keep[away].mean() > 0.98
    np.testing.assert_array_equal(after.keep, results[1].keep)
    # No other cut brings them back.
    assert not fs.cut_again(after, fraction=0.999).keep[on_ice].any()


def test_a_whole_run_rejects_picks_on_ice(with_ice):
    icy, on_ice, _ = with_ice
    result = fs.sort_particles(picks_in(icy, "disks"), method="radial")
    assert not result.keep[on_ice].any()
    assert (result.reason[on_ice] == "contamination").all()


def test_published_rules_reject_picks_on_ice_too(with_ice):
    """They have no threshold by which the others could be judged again."""
    icy, on_ice, _ = with_ice
    result = fs.sort_particles(picks_in(icy, "disks"), method="radial", preset="published", diameter=56)
    assert np.isnan(result.threshold) and result.keep.any() and not result.keep[on_ice].any()


def embedded(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def page_at(path, particles, result):
    at_hand = micrographs_at_hand(particles, result)
    names = page_files(len(particles), particles.box, at_hand=at_hand)
    beside = listed_folder(path.parent / "report_images", names) if names else None
    write_page(path, particles, result, at_hand=at_hand, beside=beside, address="report_images")
    return embedded(path)["columns"].get("pictures")


def test_the_page_shows_the_verdict_on_the_micrographs(browser, with_ice, verdict, tmp_path):
    icy, *_ = with_ice
    particles = picks_in(icy, "disks")
    store, n = particles.store, len(particles)
    before = verdict._replace(keep=np.ones(n, bool), score=np.zeros(n), threshold=1.0)
    result = look_again(particles, before)
    pictures = page_at(tmp_path / "report.html", particles, result)
    assert [picture["micrograph"] for picture in pictures] == [0, 1, 2]
    for number, picture in enumerate(pictures):
        rows = unpacked(picture["images"], "<i4")
        np.testing.assert_array_equal(rows, np.flatnonzero(store.micrograph_of == number))
        scale = picture["width"] / SIDE
        x = unpacked(picture["x"], "<f4")
        np.testing.assert_allclose(x, (store.x[rows] + 0.5) * scale, atol=0.06 + scale)
        assert (tmp_path / picture["src"]).read_bytes().startswith(b"\x89PNG")
    # Only the second has ice; what is covered is where that lies.
    covered = [picture["area"].count("M") for picture in pictures]
    assert covered[1] > 4 * max(covered[0], covered[2])
    browser.open(tmp_path / "report.html")
    browser.run("localStorage.clear()")
    browser.open(tmp_path / "report.html")
    browser.click("next")
    rows = unpacked(pictures[1]["images"], "<i4")
    kinds = browser.run("[...document.querySelectorAll('#circles circle')].map(c => c.getAttribute('class'))")
    assert kinds == ["kept" if keep else "rejected" for keep in result.keep[rows]]
    chosen = int(np.flatnonzero(result.keep[rows])[0])
    click = "dispatchEvent(new MouseEvent('click', { bubbles: true }))"
    browser.run(f"document.querySelectorAll('#circles circle')[{chosen}].{click}")
    browser.settle()
    assert browser.text("now") == f"{result.keep.sum() - 1} kept"
    saved = json.loads(browser.save("save", "choices.json").read_text())
    assert saved["reject"] == [[int(rows[chosen])] * 2] and saved["keep"] == []
    assert browser.complaints() == []


def test_particles_are_shown_on_micrographs_of_another_pixel_size(folder, verdict, tmp_path):
    """A STAR file names micrographs, one of which is there; coordinates are in pixels half as large."""
    images, truth = fs.simulate_particles(12, 12, box=24, junk="noise", seed=2)
    star = fs.write_project(tmp_path / "p", images, truth)
    tables = starfile.read(star)
    tables["optics"]["rlnMicrographPixelSize"] = truth.pixel_size
    starfile.write(tables, star)
    name = tables["particles"]["rlnMicrographName"][0]
    (tmp_path / "p" / "Micrographs").mkdir(exist_ok=True)
    particles = fs.open_particles(star)
    assert micrographs_at_hand(particles, make_result(24)) is None
    with mrcfile.open(folder / "m0.mrc") as file, mrcfile.new(tmp_path / "p" / name) as copy:
        copy.set_data(np.array(file.data))
        copy.voxel_size = 2 * truth.pixel_size
    result = make_result(24, learned=verdict.learned, pixel_size=truth.pixel_size)
    (picture,) = page_at(tmp_path / "report.html", particles, result)
    rows = unpacked(picture["images"], "<i4")
    assert {particles.micrographs[row] for row in rows} == {name}
    x = particles.table.coordinates()[0][rows]
    found = unpacked(picture["x"], "<f4")
    assert found == pytest.approx((x / 2 + 0.5) * picture["width"] / SIDE, abs=0.06) and picture["area"] == ""
