"""Entries of registries as options: chosen by arguments and by configurations."""

import dataclasses
from pathlib import Path

import pytest

from cavmae.common.cli import parse_settings, parser
from cavmae.common.errors import UsageError
from cavmae.common.registry import Options, Registry


@dataclasses.dataclass(frozen=True)
class FilterOptions(Options):
    """Options of a filter."""


@dataclasses.dataclass(frozen=True)
class WindowOptions(Options):
    """Options of a window."""


FILTERS, WINDOWS = Registry("filter", FilterOptions), Registry("window", WindowOptions)


@WINDOWS.register("hann", dict)
@dataclasses.dataclass(frozen=True)
class HannOptions(WindowOptions):
    """Hann window.

    Args:
        taper: of its ends.
    """

    taper: float = 0.5


@WINDOWS.register("flat", dict)
@dataclasses.dataclass(frozen=True)
class FlatOptions(WindowOptions):
    """Flat window."""


@FILTERS.register("low-pass", dict)
@dataclasses.dataclass(frozen=True)
class LowPassOptions(FilterOptions):
    """Low-pass filter.

    Args:
        cutoff: in hertz.
        window: of its impulse response.
        sharp: leave out the transition.
    """

    cutoff: int = 100
    window: WindowOptions = HannOptions()
    sharp: bool = False


@FILTERS.register("comb", dict)
@dataclasses.dataclass(frozen=True)
class CombOptions(FilterOptions):
    """Comb filter.

    Args:
        delays: in samples.
    """

    delays: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Model.

    Args:
        filter: of the input.
        width: of a layer.
    """

    filter: FilterOptions = LowPassOptions(cutoff=70)
    width: int = 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """Run.

    Args:
        model: of the run.
        steps: of the run.
    """

    model: ModelSettings = ModelSettings()
    steps: int = 1


def settings_of(*words: str) -> Settings:
    return parse_settings(parser("x", "test"), Settings, words)[0]


def test_arguments_choose_an_entry_and_its_options() -> None:
    assert settings_of() == Settings()
    assert settings_of("--model.filter.cutoff", "5").model.filter == LowPassOptions(5)
    for words in (
        ["--model.filter", "comb"],
        ["--model.filter=comb"],
        ["--model.filter.name", "comb"],
        ["--model.filter", "low-pass", "--model.filter.name=comb"],
    ):
        assert settings_of(*words).model.filter == CombOptions()
        given = settings_of(*words, "--model.filter.delays", "[3]", "--steps=2")
        assert given == Settings(ModelSettings(CombOptions((3,))), 2)


def test_an_entry_has_the_default_of_its_field_only_where_it_is_that() -> None:
    assert settings_of("--model.filter", "low-pass").model.filter == LowPassOptions(cutoff=70)


def test_entries_nest() -> None:
    words = "--model.filter.window", "flat", "--model.filter.sharp"
    assert settings_of(*words).model.filter == LowPassOptions(70, FlatOptions(), True)
    words = "--model.filter.window.taper", "0.25"
    assert settings_of(*words).model.filter == LowPassOptions(70, HannOptions(0.25))


@pytest.mark.parametrize(
    "text",
    [
        "model: {filter: {name: comb, delays: [7]}}",
        "model.filter: {name: comb, delays: [7]}",
        "model: {filter: comb, filter.delays: [7]}",
        "model.filter: comb\nmodel.filter.delays:\n- 7\n",
    ],
)
def test_configurations_choose_entries(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert settings_of("--config", str(path)).model.filter == CombOptions((7,))
    # The options of an entry that is replaced do not bother the other.
    words = f"--config={path}", "--model.filter", "low-pass", "--model.width", "9"
    assert settings_of(*words) == Settings(ModelSettings(LowPassOptions(70), 9))
    later = tmp_path / "later.yaml"
    later.write_text("model: {filter: {name: low-pass, window: {name: hann, taper: 1e-1}}}")
    given = settings_of("--config", str(path), "--config", str(later)).model.filter
    assert given == LowPassOptions(70, HannOptions(0.1))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model.filter", "lowpass"], "model.filter: there is no filter 'lowpass' .is low-pass"),
        (["--config", "{c}"], "c.yaml, line 2: there is no option model.filter.cutof .is"),
        (["--config", "{c}", "--model.filter", "comb"], "line 2: there is no option .*cutof"),
        (["--config", "{d}"], "d.yaml, line 1: model.filter is set twice"),
        (["--config", "{e}"], "e.yaml, line 1: model takes options"),
        (["--model", "3"], "--model takes no value"),
    ],
)
def test_errors_name_the_file_or_the_option(tmp_path: Path, words: list[str], reason: str) -> None:
    (tmp_path / "c.yaml").write_text("model:\n  filter: {cutof: 3}\n")
    (tmp_path / "d.yaml").write_text("model: {filter: comb, filter: comb}\n")
    (tmp_path / "e.yaml").write_text("model: comb\n")
    names = {name: str(tmp_path / f"{name}.yaml") for name in "cde"}
    with pytest.raises(UsageError, match=reason):
        settings_of(*(word.format(**names) for word in words))


def test_an_option_of_another_entry_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings_of("--model.filter", "comb", "--model.filter.cutoff", "3")
    assert "model.filter.cutoff" in capsys.readouterr().err


def test_help_lists_the_options_of_the_chosen_entry(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings_of("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--model.filter.name {low-pass,comb}" in text
    assert "in hertz. (type: int, default: 70)" in text
    assert "--model.filter.sharp, --model.filter.no-sharp" in text
    assert "--model.filter.window.taper" in text
    assert "delays" not in text
    with pytest.raises(SystemExit):
        settings_of("--model.filter=comb", "--help")
    assert "--model.filter.delays" in capsys.readouterr().out


def test_the_saved_configuration_gives_the_same_settings(tmp_path: Path) -> None:
    command_parser = parser("x", "test")
    words = "--model.filter.window", "flat", "--model.filter.cutoff", "9", "--steps", "3"
    settings, options = parse_settings(command_parser, Settings, words)
    path = tmp_path / "config.yaml"
    options.pop("config", None)
    path.write_text(command_parser.dump(options, skip_unset=False, skip_validation=True))
    assert settings_of("--config", str(path)) == settings
    assert settings.model.filter == LowPassOptions(9, FlatOptions())


def test_flags_are_spelled_with_and_without_no() -> None:
    for words, sharp in (
        (["--model.filter.sharp"], True),
        (["--model.filter.sharp", "true"], True),
        (["--model.filter.sharp=false"], False),
        (["--model.filter.sharp", "--model.filter.no-sharp"], False),
        (["--model.filter.no_sharp"], False),
    ):
        assert settings_of(*words).model.filter == LowPassOptions(70, sharp=sharp)
    with pytest.raises(UsageError, match=r"--model\.filter\.no-sharp takes no value: leave =true"):
        settings_of("--model.filter.no-sharp=true")
