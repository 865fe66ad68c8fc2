"""What sorting returns: the verdict on every image, and how it was reached."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastsort._brief import brief
from fastsort._reasons import reason_names
from fastsort._types import Array, Bools, Codes, Floats, Singles, Words
from fastsort.decide.decoys import EstimatedErrors
from fastsort.decide.rescue import Views
from fastsort.decide.votes import LearnedVerdict
from fastsort.subspaces.filter import SubspaceResult

# Among the measurements of a result: 1 for images kept by hand, -1 for rejected ones, 0 for all others.
BY_HAND = "by_hand"


@brief
class SortResult(NamedTuple):
    """The verdict on every image, in input order, and how it was reached.

    Attributes
    ----------
    keep : ndarray of bool, shape (n,)
    score : ndarray of float64, shape (n,)
        Larger for junk; infinite for images that cannot be judged.
    reason, suspicion : ndarray of str, shape (n,)
        "valid", or why the image is rejected; and why it would be, should it be, which for rejected images is
        the same. Made of the codes whenever they are asked for.
    reason_code, suspicion_code : ndarray of int8, shape (n,)
        The same, as places in the list of all reasons.
    rescued : ndarray of bool, shape (n,)
        Rejected images that belong to a rare view and are set aside; their reason is "rare_view".
    junk_probability : ndarray of float64, shape (n,)
        1 for images that cannot be judged. NaN where there are fewer than 50 images.
    votes : dict of str to ndarray of float64, shape (n,)
        Score of each method that was asked, larger for junk; infinite for images that cannot be judged.
    offset : ndarray of float32, shape (n, 2)
        Where the particle's centre lies: row and column from pixel box // 2, in input pixels. Only the
        radial method looks for it: NaN where that was not asked.
    measurements : dict of str to ndarray
        Everything else that was measured, one entry an image.
    threshold : float
        Images with a larger score are rejected; NaN where the score does not decide.
    diameter : float
        Of the particle in angstroms, as given or estimated (`estimate_diameter`): of the sphere about its
        centre of mass that holds 95 % of its mass. NaN where the pixel size is unknown, and where the images
        do not tell.
    diameter_px : float
        The same in input pixels.
    diameter_estimated : bool
        Whether the diameter was found from the data.
    contrast : str
        "bright" or "dark": of the particles in the images; "unknown" where no method that was asked tells.
    phase_flipped : bool
        Whether the phases were flipped here.
    subspaces : SubspaceResult or None
        With the subspaces method alone: all that it says of the working images.
    errors : EstimatedErrors or None
        How well the set was sorted, as far as that can be said without labels; None with one method.
    views : Views or None
        Classes of a sample of the images; None with one method.
    learned : LearnedVerdict
        What the verdict rests on. More images can be judged with it.
    parameters : dict
        The options of the run.
    seconds : dict of str to float
        Wall time of each stage.
    box : int
        Of the images, in pixels; 0 in results of version 0.1.0.
    pixel_size : float
        Of the images, in angstroms; NaN where it is unknown.
    doubts : tuple of str
        What looks wrong in the input, a line each, with what to do.
    """

    keep: Bools
    score: Floats
    reason_code: Codes
    suspicion_code: Codes
    rescued: Bools
    junk_probability: Floats
    votes: dict[str, Floats]
    offset: Singles
    measurements: dict[str, Array]
    threshold: float
    diameter: float
    diameter_px: float
    diameter_estimated: bool
    contrast: str
    phase_flipped: bool
    subspaces: SubspaceResult | None
    errors: EstimatedErrors | None
    views: Views | None
    learned: LearnedVerdict
    parameters: dict[str, Any]
    seconds: dict[str, float]
    box: int = 0
    pixel_size: float = math.nan
    doubts: tuple[str, ...] = ()

    def _headline(self) -> str:
        """Say first what matters most, when the result is printed."""
        n, kept, rescued = len(self.keep), int(self.keep.sum()), int(self.rescued.sum())
        set_aside = f", {rescued:,} set aside" if rescued else ""
        return f"{kept:,} of {n:,} images kept, {n - kept - rescued:,} rejected{set_aside}"

    @property
    def reason(self) -> Words:
        """What each image shows: "valid", or why it is rejected."""
        return reason_names(self.reason_code)

    @property
    def suspicion(self) -> Words:
        """Why each image would be rejected."""
        return reason_names(self.suspicion_code)

    @property
    def cut(self) -> float:
        """The name of `threshold` in version 0.1.0."""
        return self.threshold

    @property
    def judge(self) -> LearnedVerdict:
        """The name of `learned` in version 0.1.0."""
        return self.learned
