"""What the quiet imports leave out, and when it comes after all."""

import importlib
import sys

import pytest

from sigline import quiet


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose `__init__` says that it ran, with a submodule."""
    folder = tmp_path / "large_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import sys\nsys.large_package_ran = True\nname = 'from init'\n"
    )
    (folder / "part.py").write_text("name = 'from part'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "large_package_ran", False, raising=False)
    yield "large_package"
    for name in [x for x in sys.modules if x.split(".")[0] == "large_package"]:
        del sys.modules[name]


def test_submodules_come_without_the_rest_of_a_large_package(package):
    quiet.import_on_demand(package)
    part = importlib.import_module(f"{package}.part")
    assert part.name == "from part"
    assert importlib.import_module(package).part is part
    assert not sys.large_package_ran


def test_large_package_is_imported_once_something_of_its_own_is_asked_for(package):
    quiet.import_on_demand(package)
    module = importlib.import_module(package)
    assert not sys.large_package_ran
    assert module.name == "from init"
    assert sys.large_package_ran
    with pytest.raises(AttributeError, match="missing"):
        _ = module.missing


def test_package_that_is_not_installed_is_named():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        quiet.import_on_demand("no_such_package")


def test_optional_packages_are_absent_for_a_while(package):
    with quiet.absent(package), pytest.raises(ImportError):
        importlib.import_module(package)
    assert importlib.import_module(package).name == "from init"
    with quiet.absent(package):
        assert importlib.import_module(package).name == "from init"
