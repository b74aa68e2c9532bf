"""All pictures of one run and the profile that was found in it."""

import os
from pathlib import Path

from sinkscope.errors import InputError
from sinkscope.profile import Profile
from sinkscope.report.layers import layer_profile
from sinkscope.report.magnitudes import magnitude_map
from sinkscope.report.run_data import band_scores, layer_series
from sinkscope.report.scores import score_histogram
from sinkscope.report.style import require_matplotlib
from sinkscope.store.reader import RunReader


def write_pictures(run: RunReader, profile: Profile, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw what a run shows: the magnitude map, and where there are sink dimensions the layers and the scores.

    Parameters
    ----------
    run : RunReader
        The run that `profile` was found in, or another one of the same backbone.
    profile : Profile
    folder : path
        Made where it does not exist. The files are named `magnitudes.png`, `layers.png` and `scores.png`.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    InputError
        If the run is of another backbone, the folder cannot be made, or matplotlib is missing.
    """
    require_matplotlib()
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}; choose another place") from error
    written = [magnitude_map(folder / "magnitudes.png", run.statistics.peak_magnitude, profile)]
    if profile.sink_dimensions:
        written.append(layer_profile(folder / "layers.png", layer_series(run, profile), name=profile.name))
        scores = band_scores(run, profile)
        if scores:
            written.append(score_histogram(folder / "scores.png", scores, name=profile.name))
    return written
