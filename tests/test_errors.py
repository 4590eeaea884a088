"""pipelines/codegrid/errors.py: what an error carries. tests/test_architecture.py reads every place that raises one."""

import copy
import importlib
import pickle

import pytest

from codegrid.errors import CodegridError, MissingFileError, require

SUBCLASSES = [
    ("codegrid.errors", "CodegridError"),
    ("codegrid.errors", "MissingFileError"),
    ("codegrid.prior.codes", "CodesError"),
    ("codegrid.tokenizer.importers.reading", "ForeignCheckpointError"),
    ("codegrid.tokenizer.feature_nets.weights", "WeightsError"),
    ("codegrid.tokenizer.hub.push", "PublishingError"),
    ("codegrid.pipelines.data.records", "DataError"),
    ("codegrid.pipelines.data.labels", "NoClassesError"),
    ("codegrid.pipelines.system.files", "OutputError"),
    ("codegrid.pipelines.artifacts.loading", "LoadingError"),
    ("codegrid.pipelines.training.run", "TrainingError"),
    ("codegrid.pipelines.commands.mistakes", "UsageError"),
    ("codegrid.pipelines.training.tracking", "TrackerError"),
    ("codegrid.pipelines.codec.file_format", "FileFormatError"),
]


def all_subclasses(cls: type) -> set[type]:
    return {cls}.union(*(all_subclasses(child) for child in cls.__subclasses__()))


@pytest.mark.parametrize(("module", "name"), SUBCLASSES, ids=[name for _, name in SUBCLASSES])
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_both_sentences_survive_the_way_between_processes(module: str, name: str, copied):
    error = getattr(importlib.import_module(module), name)("The size is \udce9.", "Give a number.")
    error.worker = 3
    again = copied(error)
    assert type(again) is type(error)
    assert (again.what, again.remedy) == (r"The size is \xe9.", "Give a number.")
    assert str(again) == str(error) == r"The size is \xe9. Give a number."
    assert again.args == error.args
    assert again.worker == 3


def test_the_list_above_is_whole():
    for module, _ in SUBCLASSES:
        importlib.import_module(module)
    ours = {cls for cls in all_subclasses(CodegridError) if cls.__module__.startswith("codegrid.")}
    assert {(cls.__module__, cls.__name__) for cls in ours} == set(SUBCLASSES)


def test_an_error_is_caught_as_what_it_is():
    with pytest.raises(FileNotFoundError) as caught:
        raise MissingFileError("There is no a.txt.", "Name a file that is there.")
    assert isinstance(caught.value, ValueError)
    assert caught.value.filename is None


def test_require_raises_both_sentences_unless_the_condition_holds():
    require(1, "Never.", "Never.")
    with pytest.raises(CodegridError) as caught:
        require(0, "steps is 0.", "Give at least 1.")
    assert (caught.value.what, caught.value.remedy) == ("steps is 0.", "Give at least 1.")
