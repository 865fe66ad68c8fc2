"""The work folder: what was done before a run was killed is not done again, and the bits are the same."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import joblib
import killed
import numpy as np
import pytest

from fastsort._checks import InputError
from fastsort._crop import crop_operator
from fastsort._saved import load
from fastsort.images import batches, work
from fastsort.images.normalize import PixelStatistics
from fastsort.images.prepare import prepare_images
from fastsort.images.work import fingerprint, hold_lock, source_identity, work_folder
from fastsort.particles.mrc import write_stack
from fastsort.particles.open import open_particles
from fastsort.particles.store import ImageStore
from fastsort.particles.table import CtfParameters
from fastsort.report.folder import results_folder

N, BOX, SIZE, BATCH = 150, 24, 16, 16


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(batches, "BATCH_BYTES", BATCH * 4 * BOX * BOX)


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def make_images(seed=0, n=N):
    images = np.random.default_rng(seed).normal(1, 2, size=(n, BOX, BOX)).astype(np.float32)
    images[5:6] = 0
    images[-3, 2, 2] = np.nan
    return images


def make_ctf(seed=0):
    rng = np.random.default_rng(seed)
    defocus = rng.uniform(8000, 20000, N)
    constants = (np.full(N, value) for value in (0.0, 300.0, 2.7, 0.1))
    return CtfParameters(defocus, defocus + 300, rng.uniform(0, 180, N), *constants)


# Working images.


class Counted(ImageStore):
    """A store that remembers which images were read, and may fail."""

    def __init__(self, images, fail_at=None):
        self.images, self.fail_at, self.read_so_far = images, fail_at, []

    def __len__(self):
        return len(self.images)

    def name(self, index):
        return str(index)

    def read(self, indices):
        if self.fail_at is not None and self.fail_at in indices:
            raise OSError(errno.EIO, "Input/output error")
        self.read_so_far.extend(indices.tolist())
        return self.images[indices]


def counted(images=None, fail_at=None):
    particles = open_particles(make_images() if images is None else images, pixel_size=3.0)
    return replace(particles, store=Counted(particles.store.array, fail_at), names=())


def prepared(particles, path, **changes):
    """Bytes of the file and of the statistics."""
    options = {"radius": 6.0, "ctf": make_ctf(), "n_jobs": 1, **changes}
    operator = options.pop("operator", crop_operator(BOX, SIZE))
    working, pixels, content = prepare_images(particles, operator, path, **options)
    images = working.read(0, len(working))
    assert images.shape == (len(particles), len(operator), len(operator))
    return Path(path).read_bytes(), *(column.tobytes() for column in (*pixels, content))


@pytest.fixture
def no_sample(monkeypatch):
    """Let a source be known by its length alone, so that only images that are prepared are read."""
    monkeypatch.setattr("fastsort.images.prepare.source_identity", lambda particles: str(len(particles)))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BATCH_BYTES", BATCH * 4 * BOX * BOX)
        return prepared(counted(), tmp_path_factory.mktemp("expected") / "images")


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("fail_at", [0, 15, 16, 100, 149])
def test_what_was_prepared_is_not_read_again(tmp_path, no_sample, expected, fail_at, n_jobs):
    path = tmp_path / "images"
    with pytest.raises(OSError, match="Input/output"):
        prepared(counted(fail_at=fail_at), path, n_jobs=n_jobs)
    again, calls = counted(), []
    found = prepared(again, path, n_jobs=n_jobs, progress=lambda *call: calls.append(call))
    assert found == expected
    read = sorted(again.store.read_so_far)
    first = fail_at // BATCH * BATCH
    assert read == list(range(read[0], N)) and read[0] % BATCH == 0
    # Two workers may have been stopped a batch apart.
    assert read[0] == first or (n_jobs == 2 and read[0] < first)
    assert calls == sorted(set(calls)) and calls[-1] == (N, N)
    assert calls[0][0] == (read[0] or BATCH)


def test_whole_files_are_not_read_again(tmp_path, no_sample, expected):
    again, calls = counted(), []
    for _ in range(2):
        found = prepared(again, tmp_path / "images", progress=lambda *call: calls.append(call))
        assert found == expected
    assert len(again.store.read_so_far) == N
    assert calls[-2:] == [(N, N), (N, N)]
    assert names_in(tmp_path) == ["images", "images.done"]


def test_processes_resume_as_threads_do(tmp_path, expected):
    path, particles = tmp_path / "images", open_particles(make_images(), pixel_size=3.0)

    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert prepared(particles, path, n_jobs=None) == expected
        os.truncate(tmp_path / "images.done", 64 + 4 * (BATCH * 17 + 16))
        path.write_bytes(path.read_bytes()[: 4 * BATCH * SIZE * SIZE * 2])
        os.truncate(path, N * SIZE * SIZE * 2)
        assert prepared(particles, path, n_jobs=None) == expected


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 80, 300, -1, -4, -5, -100])
def test_torn_journals_end_before_the_tear(tmp_path, no_sample, expected, length):
    path, journal = tmp_path / "images", tmp_path / "images.done"
    prepared(counted(), path)
    os.truncate(journal, length % journal.stat().st_size)
    again = counted()
    assert prepared(again, path) == expected
    entries = (journal.stat().st_size - 64) // (BATCH * 17 + 16)
    whole = max(0, (length % journal.stat().st_size) - 64) // (BATCH * 17 + 16)
    assert again.store.read_so_far[0] == min(whole, entries) * BATCH


@pytest.mark.parametrize("place", [3, 64, 66, 90, 250, 700, -2])
def test_changed_journals_end_before_the_change(tmp_path, no_sample, expected, place):
    path, journal = tmp_path / "images", tmp_path / "images.done"
    prepared(counted(), path)
    content = bytearray(journal.read_bytes())
    content[place] ^= 4
    journal.write_bytes(content)
    again = counted()
    assert prepared(again, path) == expected
    whole = max(0, place % len(content) - 64) // (BATCH * 17 + 16)
    assert again.store.read_so_far[0] == whole * BATCH


@pytest.mark.parametrize("batch", [0, 4, 9])
def test_images_that_never_reached_the_disk_are_prepared_again(tmp_path, no_sample, expected, batch):
    path = tmp_path / "images"
    prepared(counted(), path)
    with open(path, "r+b") as file:
        file.seek(batch * BATCH * SIZE * SIZE * 2 + 512)
        file.write(bytes(1024))
    again = counted()
    assert prepared(again, path) == expected
    assert again.store.read_so_far == list(range(batch * BATCH, N))


@pytest.mark.parametrize(
    "changes",
    [
        {"radius": 5.0},
        {"radius": None},
        {"ctf": None},
        {"ctf": make_ctf(1)},
        {"operator": crop_operator(BOX, SIZE + 1)},
        {"operator": crop_operator(BOX, SIZE)[::-1]},
        {"particles": open_particles(make_images(1), pixel_size=3.0)},
        {"particles": open_particles(make_images(), pixel_size=2.0)},
        {"particles": open_particles(make_images(0, N - 1), pixel_size=3.0), "ctf": None},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_other_arguments_start_anew(tmp_path, expected, changes):
    own = open_particles(make_images(), pixel_size=3.0)
    changes = {"particles": own, **changes}
    fresh = prepared(path=tmp_path / "fresh", **changes)
    assert fresh != expected
    assert prepared(own, tmp_path / "images") == expected
    assert prepared(path=tmp_path / "images", **changes) == fresh


@pytest.mark.parametrize("lost", ["images", "images.done"])
def test_one_file_without_the_other_is_worth_nothing(tmp_path, no_sample, expected, lost):
    prepared(counted(), tmp_path / "images")
    (tmp_path / lost).unlink()
    again = counted()
    assert prepared(again, tmp_path / "images") == expected and len(again.store.read_so_far) == N


# Stages.


def test_stages_are_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"pixels": PixelStatistics(np.arange(3, dtype=np.int8), np.ones(3), None), "n": 4}

    for _ in range(3):
        with work_folder(tmp_path / "w", fingerprint="a", keep=True) as folder:
            found = folder.stage("first", compute)
            assert type(found["pixels"]) is PixelStatistics and found["n"] == 4
    assert calls == [1]
    (tmp_path / "w" / "first.stage").write_bytes(b"PK torn")
    with work_folder(tmp_path / "w", fingerprint="a") as folder:
        assert folder.stage("first", compute)["n"] == 4
    assert calls == [1, 1] and names_in(tmp_path) == []


def test_stages_give_arrays_that_lie_the_same_way_at_first_and_later(tmp_path):
    for _ in range(2):
        with work_folder(tmp_path / "w", fingerprint="a", keep=True) as folder:
            found = folder.stage("one", lambda: np.arange(24.0).reshape(4, 6)[:, ::2])
            assert found.flags.c_contiguous and found.strides == (24, 8)


def test_nothing_is_saved_where_no_later_run_looks():
    calls = []
    with work_folder(None, fingerprint="a") as folder:
        for _ in range(2):
            # Not even what could not be saved is refused.
            assert folder.stage("one", lambda: calls.append(1) or calls) is calls
        assert not list(folder.folder.iterdir())
    assert calls == [1, 1]


def test_a_stage_that_fails_is_not_done(tmp_path):
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError), work_folder(tmp_path / "w", fingerprint="a") as folder:
        folder.stage("one", lambda: 1)
        folder.stage("two", fail)
    with work_folder(tmp_path / "w", fingerprint="a") as folder:
        assert folder.stage("one", fail) == 1
        assert folder.stage("two", lambda: 2) == 2


@pytest.mark.parametrize("name", ["", "../up", "a/b", "Upper", "a.b", "\n"])
def test_names_that_are_no_names(tmp_path, name):
    with work_folder(tmp_path / "w", fingerprint="a") as folder:
        with pytest.raises(ValueError, match="cannot name"):
            folder.path(name)


# The folder.


def fill(folder):
    folder.path("images").write_bytes(b"images")
    (folder.folder / "images.work.done").write_bytes(b"journal")
    (folder.folder / "fastsort-abc").mkdir()
    (folder.folder / "fastsort-abc" / "rows").write_bytes(b"rows")
    folder.stage("one", lambda: "one")


def test_folder_is_removed_in_the_end_unless_kept(tmp_path):
    with work_folder(tmp_path / "deep" / "w", fingerprint="a") as folder:
        fill(folder)
    assert names_in(tmp_path) == []
    with work_folder(tmp_path / "w", fingerprint="a", keep=True) as folder:
        fill(folder)
    assert {"w/images.work", "w/one.stage", "w/fingerprint"} <= set(names_in(tmp_path))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
def test_folder_stays_after_an_error_if_anything_was_done(tmp_path, error):
    with pytest.raises(error), work_folder(tmp_path / "w", fingerprint="a") as folder:
        fill(folder)
        raise error("stop")
    assert "w/images.work" in names_in(tmp_path)
    with work_folder(tmp_path / "w", fingerprint="a") as folder:
        assert folder.path("images").read_bytes() == b"images"
        assert folder.stage("one", lambda: "again") == "one"
        assert not (folder.folder / "fastsort-abc").exists()
    with pytest.raises(error), work_folder(tmp_path / "deep" / "w", fingerprint="a"):
        raise error("stop")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_folder_without_a_name_is_always_removed(tmp_path, monkeypatch, error):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        with work_folder(None, fingerprint="a") as folder:
            fill(folder)
            assert names_in(tmp_path)
            if error:
                raise error
    except RuntimeError:
        assert error
    assert names_in(tmp_path) == []
    with pytest.raises(InputError, match="name one"), work_folder(None, fingerprint="a", keep=True):
        pass


def test_another_computation_starts_anew(tmp_path):
    with work_folder(tmp_path / "w", fingerprint="a", keep=True) as folder:
        fill(folder)
    with work_folder(tmp_path / "w", fingerprint="b", keep=True) as folder:
        assert names_in(folder.folder) == ["fingerprint", "lock"]
        assert folder.stage("one", lambda: "again") == "again"
    (tmp_path / "w" / "fingerprint").unlink()
    with work_folder(tmp_path / "w", fingerprint="b") as folder:
        assert folder.stage("one", lambda: "anew") == "anew"


@pytest.mark.parametrize(
    "foreign", ["notes.txt", "images", "images.work/deeper", ".hidden", "x.stage.bak", "fastsort-rows"]
)
@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("fingerprint", ["a", "b"])
def test_folder_with_other_files_is_never_touched(tmp_path, foreign, ours, fingerprint):
    if ours:
        with work_folder(tmp_path / "w", fingerprint="a", keep=True) as folder:
            folder.stage("one", lambda: 1)
    (tmp_path / "w" / foreign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "w" / foreign).write_text("precious")
    before = names_in(tmp_path)
    with pytest.raises(InputError, match="did not write"):
        with work_folder(tmp_path / "w", fingerprint=fingerprint):
            pass
    assert names_in(tmp_path) == before and (tmp_path / "w" / foreign).read_text() == "precious"


def test_names_alone_make_no_file_ours(tmp_path):
    (tmp_path / "thesis.work").write_text("precious")
    with pytest.raises(InputError, match=r"thesis\.work, which fastsort did not write"):
        with work_folder(tmp_path, fingerprint="a"):
            pass
    assert names_in(tmp_path) == ["thesis.work"]


def test_files_that_arrive_meanwhile_are_kept(tmp_path):
    with work_folder(tmp_path / "w", fingerprint="a") as folder:
        fill(folder)
        (folder.folder / "notes.txt").write_text("precious")
    assert "w/notes.txt" in names_in(tmp_path)
    assert not {"w/images.work", "w/one.stage"} & set(names_in(tmp_path))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "w").write_text("precious")
    with pytest.raises(InputError, match="is a file"), work_folder(tmp_path / "w", fingerprint="a"):
        pass
    with pytest.raises(InputError, match="cannot write"), work_folder(tmp_path / "w" / "x", fingerprint="a"):
        pass
    assert (tmp_path / "w").read_text() == "precious"


# Locks.


def test_two_runs_cannot_share_a_folder(tmp_path):
    with work_folder(tmp_path / "w", fingerprint="a", keep=True) as folder:
        fill(folder)
        before = names_in(tmp_path)
        for fingerprint in "ab":
            with pytest.raises(InputError, match="another run is using work folder"):
                with work_folder(tmp_path / "w", fingerprint=fingerprint):
                    pass
        assert names_in(tmp_path) == before
    with work_folder(tmp_path / "w", fingerprint="a"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_systems_without_locks_do(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(work.fcntl, "flock", refuse)
    with work_folder(tmp_path / "w", fingerprint="a") as folder:
        assert folder.stage("one", lambda: 1) == 1
    monkeypatch.setattr(work, "fcntl", None)
    with work_folder(tmp_path / "w", fingerprint="a") as folder:
        assert folder.stage("one", lambda: 2) == 2
    assert names_in(tmp_path) == []


def test_a_lock_that_was_removed_before_it_was_ours_is_taken_again(tmp_path, monkeypatch):
    real, calls = work._lock, []

    def lock(descriptor, refusal):
        real(descriptor, refusal)
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / "w" / "lock").unlink()
            (tmp_path / "w").rmdir()

    monkeypatch.setattr(work, "_lock", lock)
    with hold_lock(tmp_path / "w" / "lock", "taken"):
        assert len(calls) == 2
        with pytest.raises(InputError, match="taken"), hold_lock(tmp_path / "w" / "lock", "taken"):
            pass


def test_an_error_inside_a_lock_comes_through(tmp_path):
    with pytest.raises(FileNotFoundError, match="inside"), hold_lock(tmp_path / "lock", "taken"):
        raise FileNotFoundError("inside")


# What tells computations apart.


def test_fingerprints_count_everything():
    array = np.arange(6, dtype=np.float32)
    parts = [
        (),
        (1,),
        (1.5,),
        (None,),
        ("1",),
        (1, 2),
        ([1, 2],),
        (float("nan"),),
        ({"a": 1, "b": None},),
        (array,),
        (array.reshape(2, 3),),
        (array.astype(np.float64),),
        (array + 1,),
        (np.array(["a", "b"]),),
        (make_ctf(),),
        (make_ctf()._replace(voltage=np.full(N, 200.0)),),
        (open_particles(make_images()),),
    ]
    found = [fingerprint(*part) for part in parts]
    assert len(set(found)) == len(parts) and all(len(one) == 64 for one in found)
    assert found == [fingerprint(*part) for part in parts]
    assert fingerprint({"b": None, "a": np.int64(1)}) == found[8]
    assert fingerprint(array[::-1][::-1]) == found[9]
    assert fingerprint(Path("/a")) == fingerprint("/a")
    with pytest.raises(TypeError, match="cannot count a object"):
        fingerprint(object())


def test_another_version_counts_as_another_computation(monkeypatch):
    before = fingerprint(1)
    monkeypatch.setattr(work, "__version__", "99.0")
    assert fingerprint(1) != before


def test_identity_of_stacks(tmp_path):
    def stacks(*names):
        particles = [open_particles(tmp_path / name) for name in names]
        first = particles[0]
        store = replace(
            first.store,
            stacks=[one.store.stacks[0] for one in particles],
            stack_of=np.repeat(np.arange(len(names), dtype=np.int32), 3),
            section_of=np.tile(np.arange(3, dtype=np.int32), len(names)),
        )
        return replace(first, store=store)

    for name in ("a.mrcs", "b.mrcs"):
        write_stack(tmp_path / name, [make_images(n=3)], 1.5, 3, BOX)
    both = stacks("a.mrcs", "b.mrcs")
    reverse = replace(both.store, section_of=both.store.section_of[::-1])
    others = [
        both,
        stacks("b.mrcs", "a.mrcs"),
        stacks("a.mrcs"),
        replace(both, store=reverse),
        replace(both, pixel_size=2.0),
        replace(both, ctf=make_ctf()),
        replace(both, micrographs=["m"] * 6),
    ]
    found = [source_identity(one) for one in others]
    assert len(set(found)) == len(others)
    assert source_identity(stacks("a.mrcs", "b.mrcs")) == found[0]
    status = os.stat(tmp_path / "b.mrcs")
    os.utime(tmp_path / "b.mrcs", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert source_identity(stacks("a.mrcs", "b.mrcs")) != found[0]
    (tmp_path / "b.mrcs").unlink()
    with pytest.raises(InputError, match=r"b\.mrcs"):
        source_identity(both)


def test_identity_of_arrays():
    images = make_images(n=1000)
    found = source_identity(open_particles(images))
    assert source_identity(open_particles(images.copy())) == found
    assert source_identity(open_particles(images[:-1])) != found
    assert source_identity(open_particles(images.astype(np.float64))) != found
    for place in (0, -1, slice(500, 504)):
        changed = images.copy()
        changed[place, 3, 3] += 1
        assert source_identity(open_particles(changed)) != found
    store = Counted(images)
    source_identity(replace(open_particles(images), store=store, names=()))
    assert len(store.read_so_far) == 256


# Killed runs.


def whole_run(folder, pause=0.0):
    """Everything that survives: working images, stages, results."""
    particles = open_particles(folder.parent / "source.mrcs")
    with work_folder(folder / ".out.work", fingerprint=fingerprint(particles)) as kept:
        with results_folder(folder / "out", overwrite=True) as partial:
            working, pixels, _ = prepare_images(
                particles,
                crop_operator(BOX, SIZE),
                kept.path("images"),
                n_jobs=1,
                progress=lambda *_: time.sleep(pause),
            )

            def sums():
                time.sleep(pause)
                return PixelStatistics(pixels.codes, working.read(0, N).sum(axis=(1, 2)), pixels.std)

            found = kept.stage("sums", sums)
            time.sleep(pause)
            mean = kept.stage("mean", lambda: {"mean": found.mean.mean(), "codes": found.codes})
            (partial / "kept.txt").write_bytes(found.mean.tobytes() + mean["codes"].tobytes())
            time.sleep(pause)
            (partial / "scores.csv").write_bytes(working.read(0, N).tobytes())
            (partial / "summary.json").write_text(repr(mean["mean"]))


def slow_run(folder):
    whole_run(folder, 0.004)


def check_whole(folder):
    assert names_in(folder) == ["out", "out/kept.txt", "out/scores.csv", "out/summary.json"], names_in(folder)
    for path in (folder.parent / "expected" / "out").iterdir():
        assert (folder / "out" / path.name).read_bytes() == path.read_bytes()


def make_source(folder):
    """A stack on the disk, and what an undisturbed run makes of it."""
    batches.BATCH_BYTES = BATCH * 4 * BOX * BOX
    write_stack(folder / "source.mrcs", [make_images()], 3.0, N, BOX)
    whole_run(folder / "expected")


def kill_often(folder):
    make_source(folder)
    return [_kill_often(folder, seed) for seed in range(8)]


def _kill_often(folder, seed):
    own = folder / str(seed)
    n_killed = killed.killed_at_random(slow_run, own, 0.1, seed)
    check_whole(own)
    return n_killed


def kill_at_every_step(folder):
    make_source(folder)
    return killed.killed_at_every_step(whole_run, folder, lambda own: None, check_whole)


def in_fresh_process(name, folder):
    code = f"import test_work; from pathlib import Path; print(test_work.{name}(Path({str(folder)!r})))"
    return killed.fresh_process(code)


@pytest.mark.slow
def test_killed_at_random_and_run_again(tmp_path):
    n_killed = eval(in_fresh_process("kill_often", tmp_path))
    # How many depends on how fast the machine is.
    assert sum(n_killed) >= 3


@pytest.mark.slow
def test_killed_at_every_step_and_run_again(tmp_path):
    assert int(in_fresh_process("kill_at_every_step", tmp_path)) > 40


def save_often(folder):
    """Save larger and larger values under one name."""
    for number in range(40):
        work.save(folder / "value", {"number": number, "array": np.full(20_000, number)})


def kill_while_saving(folder):
    rng, n_seen, longest = np.random.default_rng(0), 0, 0.1
    # On a slow machine the first runs may be killed before they have saved anything.
    while n_seen < 20:
        killed.ended_within(save_often, folder, rng.uniform(0, longest))
        if (folder / "value").exists():
            saved = load(folder / "value")
            assert (saved["array"] == saved["number"]).all() and len(saved["array"]) == 20_000
            n_seen += 1
        else:
            longest *= 1.1
    return len(list(folder.iterdir()))


def test_saved_values_are_whole_whenever_the_run_is_killed(tmp_path):
    assert int(in_fresh_process("kill_while_saving", tmp_path)) in (1, 2)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="only there no folder can be made")
def test_a_folder_that_nobody_can_make_is_no_other_run():
    with pytest.raises(InputError, match="cannot write") as found:
        with hold_lock(Path("/proc/nowhere/lock"), "another run"):
            pass
    assert "another run" not in str(found.value)
