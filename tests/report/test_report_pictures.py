"""Every picture is written whole, at its width, with something on it; wrong input is refused in one line."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sinkscope.errors import InputError
from sinkscope.profile import Profile
from sinkscope.report import (
    attention_on_picture,
    band_scores,
    layer_profile,
    layer_series,
    magnitude_map,
    score_histogram,
    write_pictures,
)
from sinkscope.report.magnitudes import max_pool
from sinkscope.report.run_data import BandScores, LayerSeries, Population
from sinkscope.report.style import format_number, name_dimensions, shorten, spread
from sinkscope.store.reader import RunReader

pytest.importorskip("matplotlib")


def assert_picture(path: Path, folder_holds: int | None = 1) -> Image.Image:
    """1600 pixels wide, not blank, and no partial file left beside it."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    assert picture.format is None or picture.format == "PNG"
    assert picture.width == 1600
    assert 300 < picture.height < 2500
    colours = picture.getcolors(maxcolors=2**24)
    assert colours is not None
    assert len(colours) > 20
    if folder_holds is not None:
        assert len(list(path.parent.iterdir())) == folder_holds
    return picture


def test_all_pictures_of_a_run(run: RunReader, profile: Profile, tmp_path: Path) -> None:
    written = write_pictures(run, profile, tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["magnitudes.png", "layers.png", "scores.png"]
    for path in written:
        assert_picture(path, folder_holds=3)


def test_the_same_numbers_give_the_same_file(run: RunReader, profile: Profile, tmp_path: Path) -> None:
    first = write_pictures(run, profile, tmp_path / "a")
    second = write_pictures(run, profile, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_profile_without_sinks_has_a_map_only(run: RunReader, profile: Profile, tmp_path: Path) -> None:
    data = profile.model_dump() | {"verdict": "none", "sink_dimensions": [], "bands": [], "tau": None}
    assert [path.name for path in write_pictures(run, Profile.model_validate(data), tmp_path)] == ["magnitudes.png"]


def test_map_shows_the_sink_dimension(profile: Profile, tmp_path: Path) -> None:
    magnitude = np.ones((9, 64))
    plain = np.asarray(assert_picture(magnitude_map(tmp_path / "map.png", magnitude, profile)))
    magnitude[2:8, 17] = 1000.0
    marked = np.asarray(assert_picture(magnitude_map(tmp_path / "map.png", magnitude, profile)))
    assert (plain != marked).any()


def test_map_of_zeros_and_of_a_wide_backbone(profile: Profile, tmp_path: Path) -> None:
    assert_picture(magnitude_map(tmp_path / "map.png", np.zeros((9, 64)), profile))
    wide = profile.model_copy(update={"backbone": profile.backbone.model_copy(update={"hidden_size": 5120})})
    assert_picture(magnitude_map(tmp_path / "map.png", np.full((9, 5120), 1e5), wide))


def test_map_of_another_backbone(profile: Profile, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shape \[9, 63\], profile toy needs \[9, 64\]"):
        magnitude_map(tmp_path / "map.png", np.ones((9, 63)), profile)


def test_pooling_keeps_every_peak() -> None:
    magnitude = np.zeros((2, 1000))
    magnitude[1, 777] = 5.0
    pooled = max_pool(magnitude, 192)
    assert pooled.shape == (2, 192)
    assert pooled[1].max() == 5.0
    assert np.count_nonzero(pooled) == 1


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_histograms_of_any_number_of_bands(tmp_path: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    bands = [
        BandScores(
            3 * index,
            3 * index + 2,
            "score" if index % 2 else "phi",
            20.0,
            (10.0, 40.0) if index else None,
            "separated" if index else "overlapping",
            [
                Population("text", np.exp(generator.normal(size=500)), np.full(500, 2.5)),
                Population("first token", np.full(3, 300.0), np.ones(3)),
            ],
        )
        for index in range(count)
    ]
    assert_picture(score_histogram(tmp_path / "scores.png", bands, name="toy"))


def test_histogram_of_odd_scores(tmp_path: Path) -> None:
    scores = np.array([0.0, 1e-12, 1.0, 1e9])
    band = BandScores(0, 0, "score", 20.0, None, "unknown", [Population("text", scores, np.ones(4))])
    assert_picture(score_histogram(tmp_path / "scores.png", [band], name="toy"))
    assert_picture(score_histogram(tmp_path / "scores.png", [BandScores(0, 1, "phi", 2.0, None, "unknown")], name="x"))
    with pytest.raises(InputError, match="no layer band"):
        score_histogram(tmp_path / "scores.png", [], name="toy")


def test_layers_without_attention_and_with_many_dimensions(tmp_path: Path) -> None:
    values = np.full((7, 9), np.nan)
    values[:, 3:] = 100.0
    series = LayerSeries(tuple(range(7)), values, np.ones((7, 9)), None, None, [(3, 8)])
    assert_picture(layer_profile(tmp_path / "layers.png", series, name="toy"))
    with pytest.raises(InputError, match="no sink dimensions"):
        layer_profile(tmp_path / "layers.png", LayerSeries((), values[:0], values[:0], None, None, []), name="toy")


@pytest.mark.parametrize(("size", "grid"), [((48, 48), (6, 6)), ((900, 300), (5, 16)), ((100, 700), (30, 4))])
def test_attention_on_pictures_of_any_shape(tmp_path: Path, size: tuple[int, int], grid: tuple[int, int]) -> None:
    count = grid[0] * grid[1]
    before, sinks = np.full(count, 0.5 / count), np.zeros(count, bool)
    before[2], sinks[2] = 0.3, True
    picture = Image.new("RGBA", size, (200, 100, 50, 255))
    path = attention_on_picture(
        tmp_path / "look.png", picture, grid, before, before[::-1].reshape(grid), sinks,
        prompt="What costs $5 and $6? " * 9, answers=("blue", "red\n\x1b[31m"), name="toy",
    )  # fmt: skip
    assert_picture(path)


def test_attention_without_sinks_or_attention(tmp_path: Path) -> None:
    nothing = np.zeros((3, 3))
    assert_picture(attention_on_picture(tmp_path / "l.png", Image.new("L", (9, 9)), (3, 3), nothing, nothing, nothing))


@pytest.mark.parametrize(
    ("before", "sinks", "message"),
    [
        (np.ones(8), np.zeros(9), "before has 8 values, a grid of 3 x 3"),
        (np.full(9, np.nan), np.zeros(9), "before holds negative or non-finite"),
        (np.full(9, -1.0), np.zeros(9), "before holds negative or non-finite"),
        (np.ones(9), np.zeros(4), "sinks has 4 values"),
    ],
)
def test_attention_that_does_not_fit(tmp_path: Path, before: np.ndarray, sinks: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attention_on_picture(tmp_path / "look.png", Image.new("RGB", (9, 9)), (3, 3), before, np.ones(9), sinks)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(profile: Profile, tmp_path: Path, run: RunReader) -> None:
    with pytest.raises(InputError, match="cannot write the picture"):
        magnitude_map(tmp_path / "missing" / "map.png", np.ones((9, 64)), profile)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        write_pictures(run, profile, tmp_path / "file")


def test_missing_matplotlib_is_named_with_its_remedy(
    run: RunReader, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    scores, series = band_scores(run, profile), layer_series(run, profile)
    picture, ones = Image.new("RGB", (9, 9)), np.ones(9)
    for draw in (
        lambda: magnitude_map(tmp_path / "a.png", np.ones((9, 64)), profile),
        lambda: score_histogram(tmp_path / "a.png", scores, name="toy"),
        lambda: layer_profile(tmp_path / "a.png", series, name="toy"),
        lambda: attention_on_picture(tmp_path / "a.png", picture, (3, 3), ones, ones, ones),
        lambda: write_pictures(run, profile, tmp_path / "new"),
    ):
        with pytest.raises(InputError, match=r"pip install 'sinkscope\[plots\]'"):
            draw()
    assert list(tmp_path.iterdir()) == []


def test_global_state_is_left_alone(run: RunReader, profile: Profile, tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_pictures(run, profile, tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_words_and_numbers() -> None:
    assert [format_number(value) for value in (0.012, 5, 300, 1000, 24900, 3e6)] == [
        "0.012", "5", "300", "1k", "24.9k", "3M",
    ]  # fmt: skip
    assert name_dimensions([507]) == "Dimension 507"
    assert name_dimensions([1, 2]) == "Dimensions 1 and 2"
    assert name_dimensions([1, 2, 3, 4, 5, 6]) == "Dimensions 1, 2, 3, 4 and 2 more"
    assert shorten("a  b\n c", 10) == "a b c"
    assert shorten("abcdefgh", 5) == "abcd…"


def test_labels_are_moved_apart() -> None:
    placed = spread([50.0, 10.0, 51.0, 99.0], 5.0, 0.0, 100.0)
    assert placed[1] == 10.0
    assert np.diff(np.sort(placed)).min() >= 5.0
    assert (min(placed), max(placed)) >= (0.0, 0.0)
    assert max(spread([99.0, 99.5, 100.0], 5.0, 0.0, 100.0)) <= 100.0
    crowded = spread([1.0] * 50, 5.0, 0.0, 100.0)
    assert np.diff(np.sort(crowded)) == pytest.approx(100 / 49)
    assert spread([], 5.0, 0.0, 1.0) == []
