"""Options of a run: what each of them decides, and which cannot go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np

from fastsort._checks import InputError, check_choice, check_count, check_positive
from fastsort._threshold import MIN_JUDGED
from fastsort._types import FilePath
from fastsort.decide.combine import apply_strictness
from fastsort.decide.votes import METHODS
from fastsort.particles.source import Particles
from fastsort.radial.filter import CONTRASTS, PRESETS, check_n_peaks
from fastsort.subspaces.filter import check_numbers

# The methods see no more in larger images; the published rules were made for larger ones.
WORKING_SIZE = {"default": 36, "published": 48}
# Picks that are closer than this, in angstroms, are one particle that was picked twice.
DUPLICATE_DISTANCE = 20.0
# What an option decides: the votes of the methods, the verdict that is made of these votes, how much is
# kept, which picks are duplicates, or only how the run is done.
VOTES, VERDICT, STRICTNESS, DUPLICATES, RUN = "votes", "verdict", "strictness", "duplicates", "run"


class Option(NamedTuple):
    """What is known of an option.

    Attributes
    ----------
    decides : str
        `VOTES`, `VERDICT`, `STRICTNESS`, `DUPLICATES` or `RUN`.
    unset
        The value that asks for nothing, besides None.
    method : str or None
        The only method that uses it.
    alone, together : bool
        Whether it needs that method alone, or all methods together.
    """

    decides: str
    unset: Any = None
    method: str | None = None
    alone: bool = False
    together: bool = False


@dataclass(frozen=True)
class Settings:
    """Options of `sort_particles`, checked, and filled in where they were left open.

    A new option is one line here and one in the signature of `sort_particles`. The order is that of the
    parameters in results.
    """

    diameter: Annotated[float | None, Option(VOTES)]
    method: Annotated[str | None, Option(VOTES)]
    preset: Annotated[str, Option(VOTES)]
    phase_flip: Annotated[str, Option(VOTES)]
    working_size: Annotated[int, Option(VOTES)]
    n_peaks: Annotated[int | None, Option(VOTES, method="radial")]
    contrast: Annotated[str, Option(VOTES, unset="auto", method="radial")]
    n_subspaces: Annotated[int | None, Option(VOTES, method="subspaces", alone=True)]
    n_components: Annotated[int | None, Option(VOTES, method="subspaces", alone=True)]
    seed: Annotated[int, Option(VOTES)]
    keep_at_least: Annotated[float | None, Option(STRICTNESS)]
    discard: Annotated[int | None, Option(STRICTNESS)]
    fraction: Annotated[float | None, Option(STRICTNESS)]
    unanimous: Annotated[bool, Option(STRICTNESS, unset=False, together=True)]
    keep_off_centre: Annotated[bool, Option(VERDICT, unset=False, together=True)]
    duplicate_distance: Annotated[float, Option(DUPLICATES, together=True)]
    work: Annotated[FilePath | None, Option(RUN)]
    keep_work: Annotated[bool, Option(RUN)]
    n_jobs: Annotated[int | None, Option(RUN)]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are asked."""
        return METHODS if self.method is None else (self.method,)

    @property
    def of_methods(self) -> dict[str, Any]:
        """The options that `ask_methods` takes."""
        names = ("preset", "n_peaks", "contrast", "n_subspaces", "n_components", "seed", "n_jobs")
        return {name: getattr(self, name) for name in names}

    @property
    def voting(self) -> dict[str, Any]:
        """The options that decide the votes."""
        return self._all(VOTES)

    @property
    def strictness(self) -> dict[str, Any]:
        """How much to keep, as `cut_again` takes it; empty if no such option is given."""
        return {name: value for name, value in self._all(STRICTNESS).items() if is_given(name, value)}

    @property
    def parameters(self) -> dict[str, Any]:
        """The options that a result remembers."""
        return self._all(VOTES, VERDICT, STRICTNESS, DUPLICATES)

    def _all(self, *decides: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in option_names(*decides)}


OPTIONS: dict[str, Option] = {
    name: annotation.__metadata__[0]
    for name, annotation in get_type_hints(Settings, include_extras=True).items()
}


def option_names(*decides: str) -> tuple[str, ...]:
    """Return the names of the options that decide one of these, or of all options if none is given."""
    return tuple(name for name, option in OPTIONS.items() if not decides or option.decides in decides)


def is_given(name: str, value: Any) -> bool:
    """Whether a value of an option asks for anything."""
    unset = OPTIONS[name].unset
    return value is not None and (unset is None or bool(value != unset))


def settings_for(particles: Particles, given: Mapping[str, Any]) -> Settings:
    """Check options before anything is read.

    Parameters
    ----------
    particles : Particles
    given : mapping of str to value
        Every option, as a user gave it to `sort_particles`.

    Returns
    -------
    settings : Settings

    Raises
    ------
    InputError
        If an option is out of range, has no effect, or cannot go together with another one.
    """
    method, preset, box = given["method"], given["preset"], particles.box
    if method is not None:
        check_choice("method", method, METHODS)
    check_choice("preset", preset, PRESETS)
    check_choice("contrast", given["contrast"], CONTRASTS)
    seed = check_count("seed", given["seed"], 0)
    size = min(box, WORKING_SIZE[preset])
    if given["working_size"] is not None:
        size = check_count("working_size", given["working_size"], 16)
    check_n_peaks(given["n_peaks"], size)
    _check_methods(method, given)
    check_numbers(given["n_subspaces"], given["n_components"], size)
    if preset == "published" and method not in ("radial", "subspaces"):
        raise InputError("the published rules are those of one method: name it, radial or subspaces.")
    if preset == "published" and method == "radial" and given["diameter"] is None:
        raise InputError("the published preset needs the particle's diameter: give it, in angstroms.")
    distance = DUPLICATE_DISTANCE if given["duplicate_distance"] is None else given["duplicate_distance"]
    if distance:
        check_positive("duplicate_distance", distance, "angstrom")
    strictness = option_names(STRICTNESS)
    check_strictness(
        {name: given[name] if is_given(name, given[name]) else None for name in strictness}, len(particles)
    )
    return Settings(**{**given, "seed": seed, "working_size": size, "duplicate_distance": distance})


def _check_methods(method: str | None, given: Mapping[str, Any]) -> None:
    """Refuse options that would have no effect with the methods that are asked."""
    for name, option in OPTIONS.items():
        if not is_given(name, given[name]):
            continue
        if option.method is not None and method not in (None, option.method):
            raise InputError(f"{name} does nothing with method {method!r}: leave it out.")
        if option.alone and method is None:
            raise InputError(f"{name} is for the method {option.method} alone: name it, or leave {name} out.")
        if option.together and method is not None:
            raise InputError(f"{name} needs all methods; got method {method!r}: leave the method out.")


def check_strictness(given: Mapping[str, Any], n: int, *, exactly_one: bool = False) -> None:
    """Refuse a strictness that is out of range, and more than one.

    Parameters
    ----------
    given : mapping of str to value
        As for `cut_again`; None for an option that is not given.
    n : int
        How many images there are.
    exactly_one : bool
        Whether one must be given.

    Raises
    ------
    InputError
    """
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1 or (exactly_one and not named):
        wanted = "exactly one" if exactly_one else "at most one"
        raise InputError(f"give {wanted} of {', '.join(given)}; got {', '.join(named) or 'none'}.")
    if named and named[0] != "unanimous":
        # Few images have no probabilities.
        probability = np.zeros(n) if n >= MIN_JUDGED else np.full(n, np.nan)
        apply_strictness(np.zeros(n), probability, **{named[0]: given[named[0]]})
