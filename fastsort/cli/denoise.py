"""``fastsort denoise``: a stack without most of the noise, for eyes and for picking."""

from __future__ import annotations

import argparse
import time

from fastsort._checks import InputError
from fastsort.cli.options import (
    KINDS,
    NO_BAR_HELP,
    SEED_HELP,
    Commands,
    add_command,
    add_micrographs,
    add_reading,
    n_workers,
    open_input,
)
from fastsort.cli.printing import drawing, print_denoised
from fastsort.cli.talk import add_talk

_METHODS = (
    "neighbours",
    "covariance",
    "wiener",
    "bm3d",
    "ksvd",
    "tight_frame",
    "total_variation",
    "nonlocal_means",
)


def add_denoise(commands: Commands) -> None:
    """Add the command."""
    text = "Denoise particle images, for eyes and for picking."
    example = "fastsort denoise particles.star -o denoised/"
    parser = add_command(commands, "denoise", run_denoise, "INPUT -o DIR ", text, example)
    add = parser.add_argument
    add("input", metavar="INPUT", nargs="?", help=KINDS)
    add("-o", "--output", metavar="DIR", required=True, help="folder for the results")
    add("--method", choices=_METHODS, metavar="M", help=f"{', '.join(_METHODS)} (default: least error)")
    add("--float16", action="store_true", help="write half precision: half of the disk")
    add_reading(parser)
    add_micrographs(parser)
    add("--jobs", type=n_workers, default=-1, metavar="N", help="number of workers (default -1: all cores)")
    add("--seed", type=int, default=0, metavar="N", help=SEED_HELP)
    add("--overwrite", action="store_true", help="replace earlier results in DIR")
    add_talk(parser, NO_BAR_HELP)


def run_denoise(options: argparse.Namespace) -> None:
    """Run the command."""
    from fastsort._checks import check_output_folder
    from fastsort.denoise import denoised_batches, learn_denoiser
    from fastsort.report.denoised import draw_denoised, write_denoised, write_summary
    from fastsort.report.folder import DENOISED_PICTURE, DENOISED_STACK, results_folder

    check_output_folder(options.output, options.overwrite)
    particles = open_input(options)
    if particles.table.takes == "labels" and len(options.output.split()) > 1:
        raise InputError(
            f"the folder {options.output!r} has a blank in its name, which names of images in STAR files "
            "cannot have: choose another."
        )
    begin = time.perf_counter()
    with results_folder(options.output, overwrite=options.overwrite, inputs=particles.files) as partial:
        denoiser = learn_denoiser(particles, method=options.method, n_jobs=options.jobs, seed=options.seed)
        with options.talk.progress("denoising") as progress:
            blocks = denoised_batches(particles, denoiser, n_jobs=options.jobs, progress=progress)
            strength = write_denoised(partial, options.output, particles, blocks, half=options.float16)
        with drawing(DENOISED_PICTURE, options.talk.remark):
            stack = partial / DENOISED_STACK
            draw_denoised(partial / DENOISED_PICTURE, stack, particles, strength, denoiser)
        seconds = time.perf_counter() - begin
        summary = write_summary(partial, particles, strength, denoiser, seconds)
    talk = options.talk
    talk.summary(options.output, lambda: print_denoised(summary, options.output, talk.seconds))
