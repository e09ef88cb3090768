"""The house: imports point downwards, files stay small, configs build, nothing heavy loads."""

import ast
import dataclasses
import importlib.util
import subprocess
import sys

import jax
import pytest

from pose_jax import recipe
from pose_jax.config import default, flatten, to_plain, to_tuples
from pose_jax.models import hourglass

# Storeys from the ground up; a module may import from lower storeys and from itself.
STOREYS = [
    {"arrays", "skeletons", "config"},
    {"trees", "partitions", "protocols"},
    {"geometry", "heatmaps", "intervals", "regions", "sharding", "pixels", "video"},
    {"writer"},
    {"checkpoint"},
    {"models", "data", "metrics", "report"},
    {"recipe", "answers"},
    {"training", "explain", "convert", "inference"},
    {"evaluation", "estimator", "analysis"},
    {"occlusion"},
    {"tasks"},
    {"main"},
]
LEVEL = {name: level for level, names in enumerate(STOREYS) for name in names}


def modules(repository):
    return sorted((repository / "pose_jax").rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_downwards(repository):
    for path in modules(repository):
        parts = path.relative_to(repository / "pose_jax").with_suffix("").parts
        if parts == ("__init__",):
            continue
        here = parts[0]
        for name in imported(path):
            words = name.split(".")
            if words[0] != "pose_jax" or len(words) < 2 or words[1] not in LEVEL:
                continue
            there = words[1]
            if there == here:
                continue
            assert LEVEL[there] < LEVEL[here], f"{'/'.join(parts)} imports {name}"


def test_every_module_has_a_storey(repository):
    for path in modules(repository):
        first = path.relative_to(repository / "pose_jax").with_suffix("").parts[0]
        assert first == "__init__" or first in LEVEL, first


def test_files_stay_small(repository):
    for path in modules(repository):
        assert len(path.read_text().splitlines()) <= 400, path


def test_no_mesh_axis_outside_sharding(repository):
    for path in modules(repository):
        if path.name != "sharding.py":
            assert "PartitionSpec" not in path.read_text(), path


def test_nothing_heavy_is_imported(environment):
    """Neither TensorFlow nor torch, for the library and for every task."""
    code = (
        "import sys, pkgutil, importlib, pose_jax\n"
        "for m in pkgutil.walk_packages(pose_jax.__path__, 'pose_jax.'):\n"
        "    importlib.import_module(m.name)\n"
        "bad = {'tensorflow', 'torch', 'flax.training'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


THESIS = [
    "thesis", "thesis-repaired", "thesis-repaired-leaky", "thesis-stacked-ae",
    "thesis-small", "thesis-small-analyse",
    "thesis-small-repaired", "thesis-small-repaired-coco", "thesis-small-no-skips",
    *(f"thesis-small-skip{level}" for level in range(4)),
    "thesis-visible", "thesis-small-repaired-visible",
]  # fmt: skip
# Sections whose keys the user chooses.
_OPEN = ("model.", "sweep.arms.", "analyse.controls.", "checkpoint")
CONFIGS = [
    ("quickstart", None),
    *(("planted", a) for a in ("default", "all", "tiny")),
    *(
        ("removal_study", a)
        for a in (
            "lspet",
            "lspet-all",
            "lspet-weighted",
            "coco",
            "simple-baseline",
            "transpose",
        )
    ),
    *(
        ("simple_baseline", a)
        for a in ("lspet", "lspet-narrow", "18", "34", "50", "50-384", "101", "152")
    ),
    *(("hrnet", a) for a in ("w32", "w48")),
    *(
        ("convert", a)
        for a in ("hourglass-2", "vitpose-b", "transpose-h-s", "tokenpose-t")
    ),
    *(("hourglass52", a) for a in ("256", "384")),
    *(
        ("vitpose", a)
        for a in (
            "lspet",
            "s",
            "b",
            "l",
            "h",
            "s-simple",
            "b-simple",
            "l-simple",
            "h-simple",
        )
    ),
    *(("transpose", a) for a in ("small", "r-a3", "r-a4", "h-s", "h-a4", "h-a6")),
    *(("tokenpose", a) for a in ("t", "s-v1", "s-v2", "b", "l")),
    *(
        ("autoencoder", a)
        for a in ("thesis", "small", "small-study", "small-study-all", "thesis-study")
    ),
    *(("reweighting", a) for a in ("small", "analyse")),
    *(
        ("hourglass", a)
        for a in (
            "lspet",
            "coco",
            "mpii",
            "mpii-1",
            "mpii-8",
            "bearpaw-1",
            "bearpaw-2",
            "bearpaw-8",
            *THESIS,
        )
    ),
    *(("deeppose", a) for a in ("lspet", "deeppose", "resnet50", "resnet50-rle")),
    *(("ief", a) for a in ("lspet", "mpii")),
    *(
        ("mobile", a)
        for a in ("hourglass", "pose_machine", "hourglass,coco", "pose_machine,coco")
    ),
]


def load(repository, name, arg):
    path = repository / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"configs_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.get_config(*([arg] if arg else []))


def test_every_config_is_listed(repository):
    found = {p.stem for p in (repository / "configs").glob("*.py")}
    assert found == {name for name, _ in CONFIGS}


@pytest.mark.parametrize("name,arg", CONFIGS)
def test_configs_build(repository, name, arg):
    """Records are made, shapes inferred, the file opens with the command that runs it, and
    its keys are those of the defaults."""
    module, c = load(repository, name, arg)
    assert "python -m pose_jax.main" in module.__doc__ or "local.sh" in module.__doc__
    described = recipe.recipe(c)
    shapes = described.shapes()
    assert jax.tree.leaves(shapes)
    known = set(flatten(to_plain(default())))
    for key in flatten(to_plain(c)):
        assert key in known or key.startswith(_OPEN), key
    assert to_plain(to_tuples(to_plain(c))) == to_plain(c)


def test_thesis_config_is_the_thesis(repository):
    _, c = load(repository, "hourglass", "thesis")
    shapes = recipe.recipe(c).shapes()
    count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert count == 14_526_053
    assert c.train.batch == 16 and c.train.steps == 47 * 7753
    assert (c.optimiser.name, c.optimiser.learning_rate) == ("rmsprop", 2.5e-4)
    assert not any(c.data.train.augment.values())


def test_config_fields_match_records():
    fields = {f.name for f in dataclasses.fields(hourglass.HourglassConfig)}
    assert set(hourglass.THESIS) | set(hourglass.NEWELL) <= fields
