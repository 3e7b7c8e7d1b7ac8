"""Every package says what it is and which of its modules others may use."""

import importlib
import pkgutil

import pytest

import effv2_jax

PACKAGES = [module.name for module in pkgutil.walk_packages(effv2_jax.__path__, "effv2_jax.") if module.ispkg]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_has_a_docstring_and_names_only_what_it_has(name):
    package = importlib.import_module(name)
    assert package.__doc__
    for public in getattr(package, "__all__", ()):
        if not hasattr(package, public):
            importlib.import_module(f"{name}.{public}")


@pytest.mark.parametrize(
    "name", ["network", "runtime", "checkpoints", "monitoring", "learning", "planning", "bench", "report"]
)
def test_a_package_of_modules_names_those_that_others_may_use(name):
    package = importlib.import_module(f"effv2_jax.{name}")
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert package.__all__ == sorted(package.__all__) and modules.issuperset(package.__all__)
