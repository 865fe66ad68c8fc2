"""Live use: what is new is measured, what is old stays as it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

import fastsort.update as update_module
from fastsort import InputError, cli
from fastsort.decide.corrections import learn_from_choices
from fastsort.decide.verdict import cut_again
from fastsort.particles.open import open_particles
from fastsort.particles.source import choose_particles
from fastsort.particles.store import StackImages
from fastsort.report.finished import read_earlier
from fastsort.simulate import simulate_particles, write_project
from fastsort.sort import sort_particles
from fastsort.update import ANEW, DRIFTED, KEPT, update_particles

pytestmark = pytest.mark.slow

N_OLD, N_NEW, BOX = 480, 320, 48
OF_VERDICTS = ("keep", "reason", "suspicion", "score", "junk_probability", "rescued", "offset")


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch):
    """Let fewer images than usual be enough to learn models of their own."""
    monkeypatch.setattr(update_module, "FEWEST", 300)


@dataclass(frozen=True, eq=False)
class CountedImages(StackImages):
    """Stacks that know which of their images were read."""

    seen: set = field(default_factory=set)

    def read(self, indices):
        self.seen.update(self.known(indices))
        return super().read(indices)

    def known(self, indices):
        """Name images by where they lie, whatever their place in a table or a part of it."""
        stacks = [self.stacks[number].path for number in self.stack_of[indices].tolist()]
        return list(zip(stacks, self.section_of[indices].tolist(), strict=True))


def simulate(n_good, n_junk, seed, **changes):
    given = {"snr": 0.1, "box": BOX, "junk": "all", "seed": seed, **changes}
    return simulate_particles(n_good, n_junk, **given)


def write_rows(star, name, rows, changed=None):
    """Write a table of some of the rows of another one; `changed` edits the words of each row."""
    lines = Path(star).read_text().splitlines(keepends=True)
    data = [line for line in lines if "@" in line]
    head = lines[: lines.index(data[0])]
    path = Path(star).with_name(name)
    chosen = [data[row] for row in rows]
    if changed:
        chosen = [" ".join(changed(k, line.split())) + "\n" for k, line in enumerate(chosen)]
    path.write_text("".join([*head, *chosen]))
    return path


def numbered(n):
    return [f"{k:06d}@array" for k in range(1, n + 1)]


def counted(star):
    particles = open_particles(star)
    store = particles.store
    return replace(particles, store=CountedImages(store.stacks, store.stack_of, store.section_of))


def rates(label, keep):
    return np.array([keep[label].mean(), (~keep)[~label].mean()])


def assert_same_verdicts(result, rows, other, other_rows):
    for name in OF_VERDICTS:
        one, two = getattr(result, name)[rows], getattr(other, name)[other_rows]
        np.testing.assert_array_equal(one, two, err_msg=name)
    for name in other.votes:
        np.testing.assert_array_equal(result.votes[name][rows], other.votes[name][other_rows])


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A project, the truth of all its images, the table of the first of them and the result on these."""
    n = (N_OLD + N_NEW) // 2
    images, truth = simulate(n, n, seed=1)
    star = write_project(tmp_path_factory.mktemp("grown") / "p", images, truth)
    early = write_rows(star, "early.star", range(N_OLD))
    earlier = sort_particles(early, n_jobs=2)
    return star, truth.label, list(open_particles(early).names), earlier


@pytest.fixture(scope="module")
def drifted(tmp_path_factory, grown):
    """Old images, and new ones in other noise."""
    particles = open_particles(grown[0])
    old = particles.read(0, N_OLD)
    images, truth = simulate(N_NEW // 2, N_NEW // 2, seed=2, noise="white")
    label = np.concatenate([grown[1][:N_OLD], truth.label])
    both = np.concatenate([old, images])
    return open_particles(both, pixel_size=particles.pixel_size), label, numbered(N_OLD)


def count_sorts(monkeypatch):
    """Note of every sort within an update how many images it is about, and whether it uses earlier models."""
    calls = []

    def sort(particles, **options):
        calls.append((len(particles), options.get("earlier") is not None))
        return sort_particles(particles, **options)

    monkeypatch.setattr(update_module, "sort_particles", sort)
    return calls


def test_only_new_images_are_read_and_old_verdicts_stay(grown, monkeypatch):
    star, label, names, earlier = grown
    order = np.random.default_rng(0).permutation(N_OLD + N_NEW)
    mixed = counted(write_rows(star, "mixed.star", order))
    result = update_particles(mixed, earlier, names, n_jobs=2)
    assert mixed.store.seen == set(mixed.store.known(np.flatnonzero(order >= N_OLD)))
    assert result.parameters["update"] == {"new_images": N_NEW, "removed_images": 0, "models": KEPT}
    places = np.argsort(order)
    assert_same_verdicts(result, places[:N_OLD], earlier, slice(None))
    assert result.threshold == earlier.threshold and "models" not in result.measurements
    new = places[N_OLD:]
    np.testing.assert_array_equal(
        result.keep[new],
        (result.score[new] <= earlier.threshold) & ~result.measurements["duplicate"][new],
    )
    together = sort_particles(star, n_jobs=2)
    expected = rates(label[N_OLD:], together.keep[N_OLD:])
    assert np.abs(rates(label[N_OLD:], result.keep[new]) - expected).max() <= 0.05
    # Nothing is learned to judge a few: they alone are sorted, with the models of before.
    few = open_particles(write_rows(star, "few.star", range(N_OLD + 20)))
    calls = count_sorts(monkeypatch)
    update_particles(few, earlier, names, n_jobs=2)
    assert calls == [(20, True)]


def test_one_new_image_is_judged_as_among_many(grown):
    star, _, names, earlier = grown
    result, many = (
        update_particles(
            open_particles(write_rows(star, f"{n_new}.star", range(N_OLD + n_new))), earlier, names, n_jobs=1
        )
        for n_new in (1, 60)
    )
    # Up to rounding of the products of many images at once.
    np.testing.assert_allclose(result.score[N_OLD], many.score[N_OLD], rtol=1e-4, atol=1e-5)
    probabilities = result.junk_probability[N_OLD], many.junk_probability[N_OLD]
    np.testing.assert_allclose(*probabilities, rtol=1e-3, atol=1e-6)
    assert result.parameters["update"] == {"new_images": 1, "removed_images": 0, "models": KEPT}


def test_nothing_new_changes_nothing(grown, monkeypatch):
    star, _, names, earlier = grown
    order = np.random.default_rng(1).permutation(N_OLD)[: N_OLD - 100]
    same = counted(write_rows(star, "same.star", order))
    calls = count_sorts(monkeypatch)
    result = update_particles(same, earlier, names)
    assert not same.store.seen and calls == []
    assert_same_verdicts(result, slice(None), earlier, order)
    update = {"new_images": 0, "removed_images": 100, "models": KEPT}
    assert result.parameters == {**earlier.parameters, "update": update}
    assert list(result.seconds) == ["total"]
    np.testing.assert_array_equal(result.views.label, earlier.views.label[order])
    assert result.errors.by_kind == earlier.errors.by_kind


def test_drifted_images_get_models_of_their_own(grown, drifted, monkeypatch):
    _, _, _, earlier = grown
    images, label, names = drifted
    alone = None

    def sort(particles, **options):
        nonlocal alone
        alone = sort_particles(particles, **options)
        return alone

    monkeypatch.setattr(update_module, "sort_particles", sort)
    result = update_particles(images, earlier, names, n_jobs=2)
    monkeypatch.undo()
    # The last call was without the old models.
    assert alone.learned.weights != earlier.learned.weights and len(alone.keep) == N_NEW
    assert result.parameters["update"] == {"new_images": N_NEW, "removed_images": 0, "models": ANEW}
    assert_same_verdicts(result, slice(N_OLD), earlier, slice(None))
    assert result.measurements["models"].tolist() == [0] * N_OLD + [1] * N_NEW
    pixels, pixel_size = images.store.array, images.pixel_size
    np.testing.assert_array_equal(result.junk_probability[N_OLD:], alone.junk_probability)
    step = earlier.threshold - alone.threshold
    np.testing.assert_allclose(result.score[N_OLD:], alone.score + step, rtol=1e-9)
    assert (result.keep[N_OLD:] != alone.keep).sum() <= 1
    assert result.threshold == earlier.threshold
    assert (rates(label[N_OLD:], result.keep[N_OLD:]) > 0.95).all()

    # What follows is judged with the new models, on their scale.
    more, truth = simulate(100, 100, seed=3, noise="white")
    whole = open_particles(np.concatenate([pixels, more]), pixel_size=pixel_size)
    again = update_particles(whole, result, numbered(N_OLD + N_NEW), n_jobs=2)
    assert again.parameters["update"] == {"new_images": 200, "removed_images": 0, "models": KEPT}
    assert_same_verdicts(again, slice(N_OLD + N_NEW), result, slice(None))
    assert again.measurements["models"].tolist() == [0] * N_OLD + [1] * (N_NEW + 200)
    last = sort_particles(more, earlier=alone, n_jobs=2)
    np.testing.assert_allclose(
        again.junk_probability[N_OLD + N_NEW :], last.junk_probability, rtol=1e-6, atol=1e-9
    )
    assert (rates(truth.label, again.keep[N_OLD + N_NEW :]) > 0.9).all()


def test_few_drifted_images_keep_the_models_and_are_told(grown, drifted):
    images, _, names = drifted
    some = open_particles(images.store.array[: N_OLD + 150], pixel_size=images.pixel_size)
    result = update_particles(some, grown[3], names, n_jobs=2)
    assert result.parameters["update"] == {"new_images": 150, "removed_images": 0, "models": DRIFTED}
    assert_same_verdicts(result, slice(N_OLD), grown[3], slice(None))


def test_judging_again_after_a_drift_sorts_everything(grown, drifted, monkeypatch):
    images, _, names = drifted
    calls = []

    def sort(particles, **options):
        calls.append((len(particles), options))
        return sort_particles(particles, **options) if options.get("earlier") else grown[3]

    monkeypatch.setattr(update_module, "sort_particles", sort)
    result = update_particles(images, grown[3], names, judge_again=True, fraction=0.4, n_jobs=2)
    assert [number for number, _ in calls] == [N_NEW, len(images)]
    whole = calls[1][1]
    assert whole["fraction"] == 0.4 and whole["duplicate_distance"] == 20 and "earlier" not in whole
    assert whole["phase_flip"] == "auto"
    assert result.parameters["update"] == {"new_images": N_NEW, "removed_images": 0, "models": ANEW}


def test_judging_again_calibrates_all_images(grown):
    star, label, names, earlier = grown
    whole = counted(star)
    result = update_particles(whole, earlier, names, judge_again=True, n_jobs=2)
    assert whole.store.seen == set(whole.store.known(np.arange(N_OLD, N_OLD + N_NEW)))
    np.testing.assert_array_equal(result.score[:N_OLD], earlier.score)
    assert (result.junk_probability[:N_OLD] != earlier.junk_probability).any()
    order = np.argsort(result.score)
    assert (np.diff(result.junk_probability[order]) >= 0).all()
    np.testing.assert_array_equal(
        result.keep, (result.score <= result.threshold) & ~result.measurements["duplicate"]
    )
    assert (rates(label, result.keep) > 0.9).all()
    some = open_particles(write_rows(star, "again.star", range(N_OLD)))
    usual = update_particles(some, earlier, names, judge_again=True)
    strict = update_particles(some, earlier, names, judge_again=True, fraction=0.3)
    np.testing.assert_array_equal(strict.keep, cut_again(usual, fraction=0.3).keep)
    assert strict.keep.sum() < usual.keep.sum() and strict.parameters["fraction"] == 0.3


def test_strict_stays_strict(grown):
    star, _, names, earlier = grown
    some = open_particles(write_rows(star, "strict.star", range(N_OLD + 100)))
    new = slice(N_OLD, None)
    usual = update_particles(some, earlier, names, n_jobs=2)
    alone = ~usual.measurements["duplicate"]

    strict = cut_again(earlier, fraction=0.2)
    result = update_particles(some, strict, names, n_jobs=2)
    assert_same_verdicts(result, slice(N_OLD), strict, slice(None))
    assert result.threshold == strict.threshold and result.parameters["update"]["models"] == KEPT
    np.testing.assert_array_equal(result.junk_probability[new], usual.junk_probability[new])
    np.testing.assert_array_equal(result.keep[new], ((result.score <= strict.threshold) & alone)[new])
    assert 0 < result.keep[new].sum() < usual.keep[new].sum()

    result = update_particles(some, cut_again(earlier, unanimous=True), names, n_jobs=2)
    assert np.isnan(result.threshold)
    np.testing.assert_array_equal(result.score, usual.score)
    np.testing.assert_array_equal(result.keep[new], ((result.measurements["against"] < 3) & alone)[new])


def test_new_images_are_judged_by_what_a_person_taught(grown):
    star, label, names, earlier = grown
    rows = np.random.default_rng(3).choice(N_OLD, 100, replace=False)
    poor = cut_again(earlier, fraction=0.03)
    told = learn_from_choices(poor, rows[label[rows]], rows[~label[rows]])
    assert told.learned
    particles = counted(star)
    result = update_particles(particles, told.result, names, n_jobs=1)
    assert len(particles.store.seen) == N_NEW
    assert_same_verdicts(result, np.arange(N_OLD), told.result, np.arange(N_OLD))
    assert result.learned.weights == told.result.learned.weights != earlier.learned.weights
    new = np.arange(N_OLD, N_OLD + N_NEW)
    assert rates(label[new], result.keep[new]).min() > 0.75
    np.testing.assert_array_equal(np.flatnonzero(result.measurements["by_hand"]), np.sort(rows))
    assert not result.errors.known and "learned from 100 choices" in result.errors.remark
    with pytest.raises(InputError, match="nothing else is left to judge again by"):
        update_particles(particles, told.result, names, judge_again=True)


def test_of_two_picks_the_one_that_was_kept_stays(grown):
    star, _, names, earlier = grown
    kept = np.flatnonzero(earlier.keep)
    rejected = np.flatnonzero(~earlier.keep & ~earlier.measurements["duplicate"])
    together = update_particles(open_particles(star), earlier, names, n_jobs=2)
    good = N_OLD + np.flatnonzero(together.keep[N_OLD:])
    # Better than the old image that lies at its side, and a particle at the side of a rejected pick.
    best = good[np.argmin(together.score[good])]
    worst = kept[np.argmax(earlier.score[kept])]
    assert together.score[best] < earlier.score[worst]
    beside = {int(best): int(worst), int(good[5]): int(rejected[3])}
    lines = [line.split() for line in star.read_text().splitlines() if "@" in line]
    rows = [*range(N_OLD), *beside]

    def moved(k, words):
        # Micrograph and coordinates of the old pick, a pixel away.
        if k < N_OLD:
            return words
        other = lines[beside[rows[k]]]
        return [words[0], other[1], str(float(other[2]) + 1), *other[3:]]

    def update(result, names):
        return update_particles(open_particles(table), result, names, n_jobs=1)

    table = write_rows(star, "twice.star", rows, moved)
    result = update(earlier, names)
    assert_same_verdicts(result, slice(N_OLD), earlier, slice(None))
    assert result.reason[N_OLD:].tolist() == ["duplicate", "valid"]
    assert result.parameters["duplicate_distance"] == earlier.parameters["duplicate_distance"]
    # The next update looks for duplicates, too.
    first = update_particles(
        open_particles(write_rows(star, "one.star", range(N_OLD + 1))), earlier, names, n_jobs=1
    )
    names = [*names, lines[N_OLD][0]]
    second = write_rows(star, "second.star", [*range(N_OLD + 1), int(best)])
    text = second.read_text().splitlines(keepends=True)
    words = text[-1].split()
    text[-1] = (
        " ".join([words[0], lines[worst][1], str(float(lines[worst][2]) + 1), *lines[worst][3:]]) + "\n"
    )
    second.write_text("".join(text))
    table = second
    assert update(first, names).reason[-1] == "duplicate"


def test_an_image_that_a_table_names_twice(grown):
    star, _, names, earlier = grown
    kept = int(np.flatnonzero(earlier.keep)[0])
    table = write_rows(star, "repeated.star", [*range(N_OLD), kept])
    result = update_particles(open_particles(table), earlier, names, n_jobs=1)
    assert_same_verdicts(result, slice(N_OLD), earlier, slice(None))
    assert result.keep[kept] and result.keep[-1] and result.measurements["copy"].sum() == 1
    assert result.score[-1] == result.score[kept]
    again = update_particles(open_particles(table), result, list(open_particles(table).names), n_jobs=1)
    assert again.parameters["update"]["new_images"] == 0
    assert_same_verdicts(again, slice(None), result, slice(None))


def test_what_cannot_be_updated(grown):
    star, _, names, earlier = grown
    whole = open_particles(star)

    def refused(*words, particles=whole, result=earlier, known=names, **options):
        with pytest.raises(InputError) as found:
            update_particles(particles, result, known, **options)
        message = str(found.value)
        assert all(word in message for word in words), message
        assert "\n" not in message and len(message) < 250

    refused(
        f"none of the {N_NEW}",
        particles=choose_particles(whole, np.arange(N_OLD, N_OLD + N_NEW)),
        known=["x"],
    )
    smaller = replace(whole, pixel_size=2 * whole.pixel_size)
    refused("pixel size", f"{whole.pixel_size:.4g}", particles=smaller)
    wide = open_particles(np.ones((5, 64, 64), np.float32), pixel_size=whole.pixel_size)
    refused("48 px", "64 px", particles=wide)
    unmeasured = earlier._replace(diameter=np.nan, diameter_px=np.nan)
    refused("48 px", "64 px", particles=wide, result=unmeasured)
    refused("pixel size", particles=smaller, result=unmeasured)
    refused("working_size was 36", "32", working_size=32)
    refused("diameter was None", "120", diameter=120.0)
    refused("fraction was None", "judge again", fraction=0.5)
    refused("method was None", "radial", method="radial")
    one = earlier._replace(votes={"radial": earlier.votes["radial"]})
    refused("one method only, radial", "sort without updating", result=one)
    few = choose_particles(whole, np.arange(40))
    unknown = earlier._replace(keep=earlier.keep[:40], junk_probability=np.full(40, np.nan))
    refused("40 images, too few", "sort without updating", particles=few, result=unknown)
    with pytest.raises(TypeError, match="fractoin"):
        update_particles(whole, earlier, names, fractoin=0.5)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A project of the command, sorted while half of its micrographs were there."""
    folder = tmp_path_factory.mktemp("live")
    images, truth = simulate(100, 100, seed=5)
    star = write_project(folder / "p", images, truth)
    whole = star.read_text()
    early = write_rows(star, "early.star", range(140))
    star.write_text(early.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastsort.report.drawing.draw_results", lambda *_, **__: None)
        assert cli.main(["sort", str(star), "-o", str(folder / "sorted"), "--jobs", "2", "--quiet"]) == 0
    star.write_text(whole)
    return star, folder / "sorted"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_update_leaves_the_old_results_and_the_next_one_goes_on(live, no_pictures):
    star, folder = live
    before, (earlier, names) = files_of(folder), read_earlier(folder)
    arguments = ["sort", str(star), "-o", str(folder), "--update", "--jobs", "2", "--quiet"]
    code = (
        "import os, signal\n"
        "from fastsort import cli\n"
        "from fastsort.report import drawing\n"
        "drawing.draw_results = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"cli.main({arguments!r})\n"
    )
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, timeout=600, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert files_of(folder) == before
    assert cli.main(arguments) == 0
    result, all_names = read_earlier(folder)
    assert all_names == list(open_particles(star).names) and all_names[:140] == names
    assert_same_verdicts(result, slice(140), earlier, slice(None))
    assert result.parameters["update"]["new_images"] == 60
    tables = ("kept.star", "rejected.star", "rescued.star")
    text = "".join((folder / name).read_text() for name in tables if (folder / name).exists())
    assert text.count("@") == 200
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_command_says_in_one_line_what_is_wrong(live, capsys):
    star, folder = live
    before = files_of(folder)
    for more, words in (
        (["--working-size", "40"], ["working_size was 36", "40"]),
        (["--method", "radial"], ["method"]),
        (["--pixel-size", "9.5"], ["pixel size", "9.5"]),
        (["--discard", "10"], ["discard", "judge again"]),
    ):
        assert cli.main(["sort", str(star), "-o", str(folder), "--update", *more]) == 1
        said = capsys.readouterr()
        assert said.err.count("\n") == 1 and said.out == ""
        assert all(word in said.err for word in words), said.err
    assert files_of(folder) == before
