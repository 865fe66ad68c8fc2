"""Simulated micrographs: does every one show what its truth says?"""

import math

import mrcfile
import numpy as np
import pytest
import scipy.fft
import starfile
from scipy.ndimage import fourier_shift, label
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from fastsort._checks import InputError
from fastsort.images.ctf import contrast_transfer
from fastsort.particles.open import open_particles
from fastsort.simulate import project_volume, simulate_micrographs, write_micrographs
from fastsort.simulate.fields import CONTAMINANTS
from fastsort.simulate.micrographs import MASK_BINNING, _euler_angles
from fastsort.simulate.phantoms import phantom_blobs, phantom_volume, volume_extent

# Particles of 40 px.
SMALL = {"shape": 512, "pixel_size": 4.0, "diameter": 160.0}
CLEAN = {"snr": math.inf, "contamination": 0, "ramp": 0, "defects": False}


def one(**settings):
    return next(simulate_micrographs(1, **{**SMALL, **settings}))


def in_disk(image, centre, radius):
    top, left = (max(math.ceil(middle - radius), 0) for middle in centre)
    part = image[top : math.floor(centre[0] + radius) + 1, left : math.floor(centre[1] + radius) + 1]
    y, x = np.ogrid[: part.shape[0], : part.shape[1]]
    return part[np.hypot(top + y - centre[0], left + x - centre[1]) <= radius]


def whole(micrograph, reach):
    """Which centres are further from the edges than a reach in pixels."""
    centre, shape = micrograph.centre, np.array(micrograph.image.shape)
    return ((centre > reach) & (centre < shape - reach)).all(axis=1)


def contaminated(micrograph):
    """The mask with a pixel for every pixel of the micrograph."""
    rows, columns = micrograph.image.shape
    return np.kron(micrograph.mask, np.ones((MASK_BINNING, MASK_BINNING), bool))[:rows, :columns]


def test_particles_lie_where_the_truth_says_in_the_orientation_that_it_says():
    micrograph = one(volume="two-lobed", seed=3, **CLEAN)
    density = phantom_volume(phantom_blobs("two-lobed"), 96, 0.8 * 96)
    extent = volume_extent(density)
    scale = extent.diameter / 40
    spectra = scipy.fft.fft2(project_volume(density, micrograph.rotation, 64, scale=scale))
    # What lies on the centre is the centre of mass, wherever in the volume that is.
    mass = extent.centre[::-1] - 48
    shifts = micrograph.centre % 1 - (micrograph.rotation @ mass)[:, 1::-1] / scale
    spectra = np.array([fourier_shift(s, shift) for s, shift in zip(spectra, shifts, strict=True)])
    spectra = spectra[:, :, :33] * contrast_transfer(micrograph.ctf, 64, micrograph.pixel_size)
    views = scipy.fft.irfft2(spectra)[:, 12:52, 12:52]
    chosen = np.flatnonzero(whole(micrograph, 40))
    assert len(chosen) > 10
    score = np.empty((len(chosen), len(chosen)))
    for i, (y, x) in enumerate(np.floor(micrograph.centre[chosen]).astype(int)):
        cut = -micrograph.image[y - 20 : y + 20, x - 20 : x + 20].ravel()
        score[i] = [np.corrcoef(cut, view.ravel())[0, 1] for view in views[chosen]]
    assert np.median(np.diag(score)) > 0.97
    assert (score.argmax(axis=1) == np.arange(len(chosen))).all()


@pytest.mark.parametrize("contrast", ["dark", "bright"])
def test_a_matched_filter_finds_the_particles(contrast):
    micrograph = one(snr=0.1, contrast=contrast, seed=1)
    sign = 1 if contrast == "bright" else -1
    low = scipy.fft.rfft2(sign * micrograph.image)
    frequency = np.hypot(scipy.fft.fftfreq(512)[:, None], scipy.fft.rfftfreq(512))
    low *= (
        contrast_transfer(micrograph.ctf, 512, 4.0)[0] * np.exp(-((frequency * 12) ** 2)) * (frequency > 0.01)
    )
    response = scipy.fft.irfft2(low)
    # The energy of what the filter leaves, around each centre and at places without a particle.
    energy = lambda places: [in_disk(response, place, 14).var() for place in places]  # noqa: E731
    free = cKDTree(micrograph.centre)
    places = np.random.default_rng(0).uniform(30, 482, (400, 2))
    dirty = contaminated(micrograph)
    places = [p for p in places if free.query(p)[0] > 45 and not in_disk(dirty, p, 30).any()]
    assert np.median(energy(micrograph.centre)) > 1.5 * np.median(energy(places))


def test_snr_is_what_was_asked():
    settings = {**SMALL, "contamination": 0, "ramp": 0, "defects": False, "seed": 2}
    n, signal, noise = 6, [], []
    pairs = zip(
        simulate_micrographs(n, **{**settings, "snr": math.inf}),
        simulate_micrographs(n, **{**settings, "snr": 0.1}),
        strict=True,
    )
    for clean, noisy in pairs:
        chosen = clean.centre[whole(clean, 20)]
        signal += [in_disk(clean.image, centre, 20).var() for centre in chosen]
        noise.append((noisy.image - clean.image).var())
    # Neighbours' fringes reach into the disks.
    assert np.mean(signal) / np.mean(noise) == pytest.approx(0.1, rel=0.15)
    np.testing.assert_allclose(noise, np.mean(noise), rtol=0.03)


def test_the_zeros_of_the_ctf_show():
    micrograph = one(shape=(512, 640), contaminants="carbon", contamination=0.6, defects=False, seed=5)
    shown = micrograph.image[:512, :512] - micrograph.image.mean()
    power = np.abs(scipy.fft.rfft2(shown * np.hanning(512)[:, None] * np.hanning(512))) ** 2
    transfer = np.abs(contrast_transfer(micrograph.ctf, 512, 4.0)[0])
    frequency = np.hypot(scipy.fft.fftfreq(512)[:, None], scipy.fft.rfftfreq(512))
    ring = (frequency > 0.1) & (frequency < 0.4)
    assert power[ring & (transfer < 0.15)].mean() < 0.6 * power[ring & (transfer > 0.9)].mean()


@pytest.mark.parametrize(("kinds", "share"), [*((kind, 0.2) for kind in CONTAMINANTS), (CONTAMINANTS, 0.05)])
def test_contamination_covers_the_share_asked(kinds, share):
    masks = [m.mask.mean() for m in simulate_micrographs(2, contamination=share, contaminants=kinds, **SMALL)]
    assert masks == pytest.approx([share] * 2, abs=0.02)


@pytest.mark.parametrize("kind", CONTAMINANTS)
def test_contamination_is_where_the_mask_says(kind):
    settings = {**SMALL, **CLEAN, "crowding": 0, "contaminants": kind}
    micrograph = next(simulate_micrographs(1, **{**settings, "contamination": 0.3}))
    inside = contaminated(micrograph)
    assert len(micrograph.centre) == 0
    assert micrograph.image[inside].var() > 10 * micrograph.image[~inside].var()
    if kind != "aggregates":
        assert micrograph.image[inside].mean() < micrograph.image[~inside].mean()
    if kind == "carbon":
        assert label(inside)[1] == 1


@pytest.mark.parametrize("spacing", [0.8, 1.0, 1.4])
def test_particles_are_apart_and_off_the_contamination(spacing):
    micrograph = one(crowding=0.15, spacing=spacing, contamination=0.3, seed=4)
    assert len(micrograph.centre) > 10
    assert cKDTree(micrograph.centre).query(micrograph.centre, 2)[0][:, 1].min() >= spacing * 40
    dirty = contaminated(micrograph)
    # Blocks of the mask are 8 px wide.
    assert not any(in_disk(dirty, centre, 20 - MASK_BINNING).any() for centre in micrograph.centre)


def test_crowding_is_the_share_of_the_clean_area():
    found = [len(m.centre) for m in simulate_micrographs(4, crowding=0.3, **{**SMALL, **CLEAN})]
    assert np.mean(found) * math.pi * 20**2 / 512**2 == pytest.approx(0.3, rel=0.1)


def test_particles_over_the_edge_are_seen_and_only_centres_inside_are_true():
    micrograph = one(crowding=0.35, seed=6, **CLEAN)
    centre = micrograph.centre
    assert (centre >= 0).all() and (centre <= 511).all() and (centre.min(axis=0) < 20).any()
    # Somewhere at the edge is a particle that the truth does not name.
    y, x = np.nonzero(np.abs(micrograph.image - 50) > 1.5)
    away = cKDTree(centre).query(np.column_stack([y, x]))[0] > 30
    on_the_edge = np.minimum.reduce([y, x, 511 - y, 511 - x]) < 20
    assert (away & on_the_edge).sum() > 10
    assert (away & ~on_the_edge).sum() == 0


def test_ramp_and_defects_can_be_had_alone():
    nothing = {**SMALL, **CLEAN, "crowding": 0}
    empty, ramp, broken = (
        next(simulate_micrographs(1, **{**nothing, **more})).image
        for more in ({}, {"ramp": 0.1}, {"defects": True})
    )
    np.testing.assert_array_equal(empty, np.full((512, 512), 50, np.float32))
    rows, columns = ramp.mean(axis=1), ramp.mean(axis=0)
    assert 0.01 < np.hypot(rows[-1] - rows[0], columns[-1] - columns[0]) / 50 <= 0.1
    np.testing.assert_allclose(np.diff(rows), np.diff(rows).mean(), atol=1e-4)
    dead = np.flatnonzero((np.abs(broken - 45) < 1e-3).mean(axis=0) > 0.99)
    assert 1 <= len(dead) <= 3 and broken.max() > 70
    # The camera is the same on all micrographs.
    second = list(simulate_micrographs(2, **{**nothing, "defects": True}))[1].image
    np.testing.assert_array_equal(second[:, dead], broken[:, dead])
    np.testing.assert_array_equal(second > 70, broken > 70)


def test_a_seed_gives_the_same_micrographs_whatever_their_number():
    two, three = list(simulate_micrographs(2, **SMALL)), list(simulate_micrographs(3, **SMALL))
    for one_of_two, one_of_three in zip(two, three, strict=False):
        np.testing.assert_array_equal(one_of_two.image, one_of_three.image)
        np.testing.assert_array_equal(one_of_two.centre, one_of_three.centre)
        np.testing.assert_array_equal(one_of_two.mask, one_of_three.mask)
    defoci = {m.ctf.defocus_u[0] for m in three}
    assert len(defoci) == 3
    assert not np.array_equal(one(seed=1).image, two[0].image)


def test_angles_are_relions():
    rotation = Rotation.random(50, rng=np.random.default_rng(0)).as_matrix()
    rot, tilt, psi = _euler_angles(rotation)
    # RELION's matrix is made of turns of the axes, not of the particle.
    again = Rotation.from_euler("ZYZ", np.column_stack([rot, tilt, psi]), degrees=True).as_matrix()
    np.testing.assert_allclose(again.transpose(0, 2, 1), rotation, atol=1e-9)


def test_what_is_written_is_what_was_made(tmp_path):
    settings = {**SMALL, "shape": (200, 260), "seed": 7}
    star = write_micrographs(tmp_path / "made", simulate_micrographs(2, **settings))
    made = list(simulate_micrographs(2, **settings))
    listed, truth = starfile.read(star), starfile.read(star.with_name("particles_truth.star"))
    names = [f"Micrographs/micrograph_{i:04d}.mrc" for i in range(2)]
    assert listed["micrographs"]["rlnMicrographName"].tolist() == names
    expected = [m.ctf.defocus_u[0] for m in made]
    np.testing.assert_allclose(listed["micrographs"]["rlnDefocusU"], expected, atol=1e-3)
    assert float(listed["optics"]["rlnMicrographPixelSize"].squeeze()) == 4.0
    for name, micrograph in zip(names, made, strict=True):
        with mrcfile.open(star.parent / name) as file:
            assert file.header.mode == 2 and file.voxel_size.x == 4
            np.testing.assert_array_equal(file.data, micrograph.image)
        mask = name.replace("Micrographs", "Masks").replace(".mrc", "_mask.mrc")
        with mrcfile.open(star.parent / mask) as file:
            assert file.header.mode == 0 and file.voxel_size.x == 4 * MASK_BINNING
            np.testing.assert_array_equal(file.data, micrograph.mask)
        rows = truth["particles"][truth["particles"]["rlnMicrographName"] == name]
        np.testing.assert_allclose(rows[["rlnCoordinateY", "rlnCoordinateX"]], micrograph.centre, atol=1e-5)
    particles = open_particles((star, star.with_name("particles_truth.star")), box=64)
    assert len(particles) == sum(len(m.centre) for m in made)
    assert particles.ctf is not None and particles.pixel_size == 4.0


def test_nothing_is_overwritten_unasked(tmp_path):
    folder = tmp_path / "made"
    few = {**SMALL, "shape": 128}
    write_micrographs(folder, simulate_micrographs(2, **few))
    with pytest.raises(InputError, match="not empty"):
        write_micrographs(folder, simulate_micrographs(1, **few))
    write_micrographs(folder, simulate_micrographs(1, **few), overwrite=True)
    assert len(list((folder / "Micrographs").iterdir())) == 1
    with pytest.raises(InputError, match="no micrographs"):
        write_micrographs(folder, [], overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    (folder / "particles_truth.star").unlink()
    with pytest.raises(InputError, match="not a simulated project"):
        write_micrographs(folder, simulate_micrographs(1, **few), overwrite=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shape": 32}, "height"),
        ({"shape": (512, 512, 3)}, "shape must be two numbers"),
        ({"snr": 0}, "snr"),
        ({"diameter": 4000}, "diameter is 1000 px"),
        ({"pixel_size": -1}, "pixel_size"),
        ({"crowding": 0.6}, "crowding must be 0 to 0.4"),
        ({"crowding": 0.2, "spacing": 2}, "crowding must be 0 to 0.1"),
        ({"contamination": 0.95}, "contamination must be 0 to 0.9"),
        ({"contaminants": ["dust"]}, "contaminants must be one of"),
        ({"contaminants": []}, "contaminants names no kinds"),
        ({"defocus": (2, 1)}, "swap"),
        ({"defocus": 2}, "defocus must be two numbers"),
        ({"ramp": math.nan}, "ramp"),
        ({"noise": "pink"}, "noise"),
        ({"contrast": "black"}, "contrast"),
        ({"volume": "nowhere.mrc"}, "does not exist"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_parameters_are_told_before_anything_is_made(settings, words):
    with pytest.raises(InputError, match=words):
        simulate_micrographs(1, **{**SMALL, **settings})
    with pytest.raises(InputError, match="n must be"):
        simulate_micrographs(0)
