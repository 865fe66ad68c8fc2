"""``fastsort map``: classes of the images, their averages, and what of a finished map is kept."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING

from fastsort.cli.options import (
    KINDS,
    Commands,
    add_command,
    add_images,
    add_places,
    add_run,
    open_input,
    refuse_all_but,
    resumable,
    work_folder_of,
)
from fastsort.cli.printing import drawing, print_map

if TYPE_CHECKING:
    from fastsort._types import Array
    from fastsort.classify import MapResult
    from fastsort.report.selection import Selection

_LONGEST_RANGE = 10_000
_COLORS = ("class", "score", "probability", "likeness")


def add_map(commands: Commands) -> None:
    """Add the command."""
    text = "Divide particle images into classes, average and rank the classes."
    example = "fastsort map particles.star -o map/"
    parser = add_command(commands, "map", run_map, "INPUT -o DIR ", text, example)
    add_places(parser, f"{KINDS}, or the folder of a finished map")
    add = parser.add_argument
    add("--classes", type=int, metavar="N", help="number of classes (default: from the data)")
    add("--groups", type=int, default=1, metavar="N", help="number of kinds of particle (default 1)")
    embedding = "method of the map (auto: umap if it is installed)"
    add("--embedding", choices=("auto", "umap", "pca"), default="auto", help=embedding)
    add("--denoised", action="store_true", help="divide the denoised images too, and compare")
    color = "what the colours of the map show (default class)"
    add("--color", choices=_COLORS, default="class", help=color)
    choice = parser.add_mutually_exclusive_group()
    kept = "these classes of a finished map, such as 1-3,7; nothing is computed"
    choice.add_argument("--keep-classes", type=_numbers, metavar="LIST", help=f"keep {kept}")
    choice.add_argument("--discard-classes", type=_numbers, metavar="LIST", help=f"discard {kept}")
    add_images(parser.add_argument_group("images"), "0.8 of box", "default 96")
    add_run(parser.add_argument_group("run"))


def _numbers(text: str) -> list[int]:
    """Read numbers and ranges of them, such as 1-3,7."""
    numbers: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
        first, last = (int(end) for end in (ends[1], ends[2] or ends[1])) if ends else (1, 0)
        if last < first or last - first > _LONGEST_RANGE:
            wanted = "must be numbers or ranges with commas between them, such as 1-3,7"
            raise argparse.ArgumentTypeError(f"{wanted}; got {text!r}")
        numbers += range(first, last + 1)
    return numbers


def run_map(options: argparse.Namespace) -> None:
    """Run the command."""
    from fastsort._checks import check_output_folder

    check_output_folder(options.output, options.overwrite)
    if options.keep_classes is None and options.discard_classes is None:
        with resumable(work_folder_of(options), options.keep_work):
            _make_map(options)
    else:
        _choose_classes(options)


def _make_map(options: argparse.Namespace) -> None:
    import numpy as np

    from fastsort.classify import classify_particles
    from fastsort.report.atlas import draw_map
    from fastsort.report.classes import write_map
    from fastsort.report.folder import DENOISED_CLASSES, results_folder
    from fastsort.report.map_page import draw_map_page
    from fastsort.report.montage import draw_classes
    from fastsort.report.recentre import origin_columns

    particles = open_input(options)
    if particles.table.takes == "labels":
        # Now, and not when all the work is done.
        origin_columns(particles, np.zeros((len(particles), 2)), np.zeros(len(particles), bool))
    with results_folder(options.output, overwrite=options.overwrite, inputs=particles.files) as partial:
        with options.talk.progress("mapping") as progress:
            result = classify_particles(
                particles,
                diameter=options.diameter,
                n_classes=options.classes,
                n_groups=options.groups,
                embedding=options.embedding,
                phase_flip=options.phase_flip,
                working_size=options.working_size,
                denoised=options.denoised,
                work=work_folder_of(options),
                # Until the results are whole.
                keep_work=True,
                n_jobs=options.jobs,
                seed=options.seed,
                progress=progress,
            )
        summary = write_map(partial, particles, result, options.talk.command)
        draw_map_page(partial, particles, result, made=summary["made"], n_jobs=options.jobs)
        with drawing("map.png and classes.png", options.talk.remark):
            draw_classes(partial / "classes.png", result.classes, result.pixel_size)
            values, label = _point_values(options.color, result)
            draw_map(
                partial / "map.png",
                result.classes,
                result.pixel_size,
                options.color,
                values=values,
                label=label,
            )
            if result.denoised is not None:
                note = "found among denoised images, made of the images as they are"
                draw_classes(partial / DENOISED_CLASSES, result.denoised.classes, result.pixel_size, note)
    talk = options.talk
    talk.summary(options.output, lambda: print_map(summary, result, options.output, talk.seconds))


def _point_values(color: str, result: MapResult) -> tuple[Array | None, str | None]:
    """Return numbers by which points are coloured, if they are no class's, and what they are."""
    if color == "probability":
        return result.classes.probability, "probability of the class"
    if color == "likeness":
        return result.classes.averages.score, "correlation with the class average"
    return None, None


def _choose_classes(options: argparse.Namespace) -> None:
    from fastsort.report.selection import select_classes

    chosen = "keep_classes" if options.discard_classes is None else "discard_classes"
    useful = ["input", "output", chosen, "overwrite", "log", "json", "quiet"]
    where = f"with --{chosen.replace('_', '-')}, which takes a finished map as it is"
    refuse_all_but(options, useful, where)
    selection = select_classes(options.input, keep=options.keep_classes, discard=options.discard_classes)
    write_selected(options, selection, [os.path.join(options.input, "summary.json")])


def write_selected(options: argparse.Namespace, selection: Selection, inputs: list[str]) -> None:
    """Write what was chosen from a finished map, and say how much that is."""
    from fastsort.report.folder import results_folder
    from fastsort.report.selection import write_selection

    with results_folder(options.output, overwrite=options.overwrite, inputs=inputs) as partial:
        write_selection(partial, selection)
    kept = int(selection.keep.sum())
    said = f"{kept:,} kept, {len(selection.keep) - kept:,} rejected; results in {options.output}"
    options.talk.summary(options.output, lambda: print(said))
