"""PyTorch's names and layouts: keys, both ways, what is refused, the original's numbers."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_weights
from torch_weights import REFERENCE

from pose_jax import models
from pose_jax.config import UserError, load_config, load_file
from pose_jax.convert import files, layout, matching
from pose_jax.convert.matching import MatchError
from pose_jax.estimator import Estimator
from pose_jax.models import zoo
from pose_jax.tasks import convert as task
from pose_jax.trees import flat_names, unflatten_names

MEMBERS = {member.name: member for member in zoo.list_models()}
DIALECT = {
    "hourglass-2": "princeton", "hourglass-2-bearpaw": "bearpaw", "hourglass52": "mmpose",
    "simple-baseline-50": "msra", "hrnet-w32": "hrnet",
}  # fmt: skip
DAILY = ("transpose-r-a3", "tokenpose-t")


@functools.cache
def described(name):
    """(section, number of keypoints, abstract variables) of a listed network."""
    member = MEMBERS[name]
    module = models.build(member.section, num_keypoints=member.num_keypoints)
    images = jnp.zeros((1, *member.input_size, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return module, shapes


def original(name):
    """The state dict that the reference was computed with."""
    member = MEMBERS[name]
    tables = matching.dialects(member.section, member.num_keypoints)
    dialect = DIALECT.get(name, name.split("-")[0])
    return torch_weights.state_dict(name, dict(tables[dialect].constants))


def converted(name, tensors, **options):
    member, (_, shapes) = MEMBERS[name], described(name)
    return matching.convert(
        tensors, member.section, shapes, member.num_keypoints, **options
    )


@pytest.mark.parametrize("name", REFERENCE)
def test_every_key_of_the_original_has_its_place(name):
    """All leaves are filled, once; the code base is recognised; back again bit for bit."""
    tensors = original(name)
    found = converted(name, tensors)
    _, shapes = described(name)
    assert set(found.leaves) == set(flat_names(shapes))
    assert found.dialect == DIALECT.get(name, name.split("-")[0])
    member = MEMBERS[name]
    table = matching.dialects(member.section, member.num_keypoints)[found.dialect]
    back = layout.to_torch(table, found.leaves)
    assert set(back) == set(tensors) - {
        k for k in found.spare if k not in table.constants
    }
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, tensors[key], err_msg=key)


@pytest.mark.parametrize(
    "name",
    [n if n in DAILY else pytest.param(n, marks=pytest.mark.parity) for n in REFERENCE],
)
def test_heatmaps_are_those_of_the_original(name):
    """Against the authors' own code on the same made-up weights: every layout rule at once."""
    module, shapes = described(name)
    variables = unflatten_names(shapes, converted(name, original(name)).leaves)
    images = jnp.asarray(torch_weights.image(MEMBERS[name].input_size))
    maps = jax.jit(lambda v, x: module.apply(v, x).heatmaps[-1])(variables, images)
    got = torch_weights.picked(np.asarray(maps).transpose(0, 3, 1, 2))
    want = np.array(REFERENCE[name]["outputs"])
    np.testing.assert_allclose(got, want, atol=5e-5 * np.abs(want).max())


TABLES_DAILY = (
    "hourglass-2", "hourglass52", "hrnet-w32", "simple-baseline-18", "transpose-r-a3",
    "transpose-h-s", "tokenpose-s-v1", "tokenpose-b", "vitpose-s", "vitpose-s-simple",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        n if n in TABLES_DAILY else pytest.param(n, marks=pytest.mark.slow)
        for n, member in MEMBERS.items()
        if member.section["name"] in matching.FAMILIES and n != "hourglass-thesis"
    ],
)
def test_names_of_all_dialects_fill_all_leaves(name):
    """Also of the code bases that no reference was computed with."""
    member = MEMBERS[name]
    leaves = set(flat_names(described(name)[1]))
    tables = matching.dialects(member.section, member.num_keypoints)
    assert tables
    for dialect, table in tables.items():
        filled = [p.leaf for places in table.table.values() for p in places]
        whole = {(p.leaf, p.part) for places in table.table.values() for p in places}
        assert len(filled) == len(whole), dialect
        assert set(filled) <= leaves, dialect
        assert table.backbone or set(filled) == leaves, dialect


# --- small networks in files ------------------------------------------------------------


@pytest.fixture
def small():
    """A narrow SimpleBaseline and its state dict."""
    section = dict(name="simple_baseline", depth=18, width=4, deconv=(8, 8, 8))
    module = models.build(section, num_keypoints=17)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    table = matching.dialects(section, 17)["msra"]
    leaves = {n: np.zeros(x.shape, np.float32) for n, x in flat_names(shapes).items()}
    tensors = {
        key: torch_weights.make(key, tensor.shape)
        for key, tensor in layout.to_torch(table, leaves).items()
    }
    return section, shapes, tensors


def test_missing_and_unused_keys_are_both_listed(small):
    section, shapes, tensors = small
    broken = dict(tensors)
    del broken["layer3.0.conv1.weight"]
    broken["layer9.0.conv1.weight"] = np.zeros((3, 3), np.float32)
    with pytest.raises(
        MatchError,
        match=r"1 keys are missing \(layer3.0.conv1.weight\) and 1 keys are not used "
        r"\(layer9.0",
    ):
        matching.convert(broken, section, shapes, 17)


def test_another_number_of_keypoints_is_named(small):
    section, shapes, tensors = small
    tensors["final_layer.weight"] = np.zeros((16, 8, 1, 1), np.float32)
    tensors["final_layer.bias"] = np.zeros(16, np.float32)
    with pytest.raises(MatchError, match="final_layer.* comes from config.skeleton"):
        matching.convert(tensors, section, shapes, 17)


@pytest.mark.parametrize(
    "key,shape",
    [
        ("final_layer.weight", (17, 8, 3, 3)),
        ("layer1.0.conv1.weight", (4, 4)),
        ("bn1.weight", (5,)),
    ],
)
def test_shapes_are_compared_before_any_rule(small, key, shape):
    """A 3x3 kernel has a 1x1 corner too, and a wrong rank breaks a transposition."""
    section, shapes, tensors = small
    tensors[key] = np.zeros(shape, np.float32)
    with pytest.raises(MatchError, match=rf"{key} has shape .* where .* is needed"):
        matching.convert(tensors, section, shapes, 17)


def test_a_whole_network_is_no_backbone(small):
    section, shapes, tensors = small
    with pytest.raises(MatchError, match="whole network .*leave convert.backbone_only"):
        matching.convert(tensors, section, shapes, 17, backbone=True)


def test_every_hint_can_be_followed(repository):
    known = load_file(repository / "configs" / "convert.py").MEMBERS
    for name, member in MEMBERS.items():
        if matching.FAMILIES.get(member.section["name"]) and name != "hourglass-thesis":
            assert name in known, name


def test_the_network_that_fits_is_named():
    with pytest.raises(
        MatchError, match="it is a tokenpose-t: use configs/convert.py:tok"
    ):
        converted("vitpose-s", original("tokenpose-t"))


def test_a_backbone_is_not_a_network(small):
    section, shapes, tensors = small
    trunk = {k: v for k, v in tensors.items() if not k.startswith(("deconv", "final"))}
    trunk["fc.weight"] = np.zeros((1000, 32), np.float32)
    with pytest.raises(MatchError, match="backbone without a pose head.*backbone_only"):
        matching.convert(trunk, section, shapes, 17)
    found = matching.convert(trunk, section, shapes, 17, backbone=True)
    assert found.backbone and found.spare == ("fc.weight",)
    assert all("/trunk/" in leaf for leaf in found.leaves)


def test_a_stored_sine_table_of_another_size_is_refused():
    tensors = original("transpose-r-a3")
    tensors["pos_embedding"] = tensors["pos_embedding"][:-24]
    with pytest.raises(MatchError, match="pos_embedding has other shape"):
        converted("transpose-r-a3", tensors)
    tensors["pos_embedding"] = torch_weights.make("x", (768, 1, 256))
    with pytest.raises(MatchError, match="pos_embedding has other values"):
        converted("transpose-r-a3", tensors)


def vit(size=(64, 48)):
    section = dict(
        name="vitpose",
        input_size=size,
        width=12,
        heads=2,
        layers=1,
        mlp=16,
        deconv=(8, 8),
    )
    module = models.build(section, num_keypoints=17)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *size, 3)))
    return section, shapes


def test_position_tables_are_interpolated_on_request():
    section, shapes = vit()
    leaves = {n: np.zeros(x.shape, np.float32) for n, x in flat_names(shapes).items()}
    table = matching.dialects(section, 17)["vitpose"]
    tensors = layout.to_torch(table, leaves)
    # A table that rises from left to right stays one.
    grid = np.tile(np.arange(8.0), (8, 1)).reshape(1, 64, 1) * np.ones(12)
    tensors["backbone.pos_embed"] = np.concatenate(
        [np.full((1, 1, 12), 7.0), grid], 1
    ).astype(np.float32)
    with pytest.raises(
        MatchError, match="64 patches and .*has 12; convert.interpolate"
    ):
        matching.convert(tensors, section, shapes, 17)
    found = matching.convert(tensors, section, shapes, 17, interpolate=True)
    (note,) = found.interpolated
    assert note == "params/encoder/positions from (8, 8) to (4, 3) patches"
    rows = found.leaves["params/encoder/positions"][0]
    np.testing.assert_allclose(rows[0], 7)
    columns = rows[1:, 0].reshape(4, 3)
    assert np.all(np.diff(columns, axis=1) > 2) and np.ptp(columns, axis=0).max() < 1e-5


def test_mmpose_position_tables_have_no_slot_in_front():
    section, shapes = vit()
    tables = matching.dialects(section, 17)
    leaves = {n: np.zeros(x.shape, np.float32) for n, x in flat_names(shapes).items()}
    tensors = layout.to_torch(tables["mmpose"], leaves)
    assert tensors["backbone.pos_embed"].shape == (1, 12, 12)
    tensors = {k: torch_weights.make(k, t.shape) for k, t in tensors.items()}
    found = matching.convert(tensors, section, shapes, 17)
    assert found.dialect == "mmpose"
    table = found.leaves["params/encoder/positions"]
    np.testing.assert_array_equal(table[:, 1:], tensors["backbone.pos_embed"])
    assert not table[:, 0].any()


# --- files and the task -----------------------------------------------------------------


def small_config(small, path, **options):
    c = load_config("configs/simple_baseline.py", "50")
    c.model = dict(small[0])
    c.input.size = (64, 64)
    c.convert.path = str(path)
    c.convert.update(options)
    return c


def write_safetensors(path, tensors):
    pytest.importorskip("safetensors")
    files.write(path, tensors)
    return path


@pytest.fixture
def at_home(repository, monkeypatch):
    monkeypatch.chdir(repository)


def test_safetensors_to_estimator_and_back(small, tmp_path, at_home):
    source = write_safetensors(tmp_path / "net.safetensors", small[2])
    workdir = str(tmp_path / "run")
    c = small_config(small, source, export=str(tmp_path / "again.safetensors"))
    from pose_jax.tasks.workdir import claim

    claim(c, workdir)
    task.run(c, workdir)
    record = json.loads((tmp_path / "run" / "conversion.json").read_text())
    assert record["dialect"] == "msra" and not record["backbone_only"]
    assert record["parity"]
    back = files.read(tmp_path / "again.safetensors")
    assert set(back) == set(small[2])
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, small[2][key], err_msg=key)
    pose = Estimator.load(workdir).predict(np.zeros((80, 60, 3), np.uint8))
    assert pose.keypoints.shape == (1, 17, 2)
    # Again: nothing to do; another file: refused.
    task.run(c, workdir)
    other = dict(small[2], conv_new=np.zeros(1, np.float32))
    c.convert.path = str(write_safetensors(tmp_path / "other.safetensors", other))
    with pytest.raises(UserError, match="holds the weights of another file"):
        task.run(c, workdir)


def test_a_converted_backbone_starts_a_training(small, tmp_path, at_home):
    from tiny import tiny_config

    from pose_jax.checkpoint import CheckpointError, load_variables
    from pose_jax.tasks import train
    from pose_jax.tasks.workdir import claim

    trunk = {k: v for k, v in small[2].items() if not k.startswith(("deconv", "final"))}
    source = write_safetensors(tmp_path / "resnet.safetensors", trunk)
    start = str(tmp_path / "trunk")
    c = small_config(small, source, backbone_only=True)
    claim(c, start)
    task.run(c, start)
    with pytest.raises(CheckpointError, match="backbone|missing"):
        Estimator.load(start)
    c = tiny_config(steps=1, save_every=1, eval_every=0)
    c.model, c.input.size = dict(small[0]), (64, 64)
    c.optimiser.update(name="sgd", learning_rate=0.0)
    c.init_from.path = start
    c.init_from.backbone_only = True
    workdir = str(tmp_path / "run")
    claim(c, workdir)
    train.run(c, workdir)
    tree, _ = load_variables(workdir, "last")
    kernel = tree["params"]["trunk"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, trunk["conv1.weight"].transpose(2, 3, 1, 0))


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        files.read(tmp_path / "nothing.pth")
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(files.FileError, match="weights are read from .pth"):
        files.read(tmp_path / "a.onnx")
    pytest.importorskip("safetensors")
    path = write_safetensors(tmp_path / "cut.safetensors", {"a": np.zeros(100)})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(files.FileError, match="no complete safetensors file.*again"):
        files.read(path)


class Mischief:
    """What a pickle could do on loading."""

    def __reduce__(self):
        return eval, ("open('/tmp/pose_jax_mischief', 'w').close()",)


def test_torch_files(tmp_path):
    """Wrappers and prefixes come off; code is refused by name and never run."""
    torch = pytest.importorskip("torch")
    tensors = {"module.conv.weight": torch.ones(2, 2, dtype=torch.bfloat16)}
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "net.pth")
    found = files.read(tmp_path / "net.pth")
    assert list(found) == ["conv.weight"] and found["conv.weight"].dtype == np.float32
    torch.save({"state_dict": tensors, "meta": Mischief()}, tmp_path / "code.pth")
    with pytest.raises(files.FileError, match=r"pickled code \(.*eval.*never run here"):
        files.read(tmp_path / "code.pth")
    whole = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(files.FileError, match="download it again"):
        files.read(tmp_path / "cut.pth")
    old = tmp_path / "old.pth"
    torch.save(tensors, old, _use_new_zipfile_serialization=False)
    assert list(files.read(old)) == ["conv.weight"]
    whole = old.read_bytes()
    for cut in range(1, len(whole), len(whole) // 40):
        old.write_bytes(whole[:cut])
        # A cut in the middle of a name asks for something that is not allowed.
        with pytest.raises(files.FileError, match="download it again|never run here"):
            files.read(old)
    noted = {"best_acc": np.float64(0.7), "perf": np.float32(1), "state_dict": tensors}
    torch.save(noted, tmp_path / "noted.pth")
    assert list(files.read(tmp_path / "noted.pth")) == ["conv.weight"]
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(files.FileError, match="download it again"):
        files.read(tmp_path / "text.pth")
    torch.save({"a": 1}, tmp_path / "empty.pth")
    with pytest.raises(files.FileError, match="holds no tensors"):
        files.read(tmp_path / "empty.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(files.FileError, match="holds a list"):
        files.read(tmp_path / "list.pth")


def test_no_public_weights_for_a_family(small, tmp_path, at_home):
    c = small_config(small, write_safetensors(tmp_path / "a.safetensors", small[2]))
    c.model = dict(name="regression", depth=18, width=4)
    with pytest.raises(ValueError, match="no public PyTorch weights are known"):
        task.run(c, str(tmp_path / "run"))
    c.convert.path = ""
    with pytest.raises(UserError, match="convert.path is empty"):
        task.run(c, str(tmp_path / "run"))
    c.convert.path = "nowhere.pth"
    with pytest.raises(UserError, match="convert.path=nowhere.pth: no such file"):
        task.run(c, str(tmp_path / "run"))


@pytest.mark.parity
def test_simple_baseline_beside_transformers(small):
    """The trunk's maps after every stage."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from pose_jax import recipe as recipe_
    from pose_jax.convert import parity

    section, shapes, tensors = small
    described_ = recipe_.recipe(small_config(small, "unused"))
    found = matching.convert(tensors, section, shapes, 17)
    tree = unflatten_names(shapes, found.leaves)
    report = parity.report(described_, tree, found.dialect)
    assert "ResNetModel" in report["source"]
    assert set(report["taps"]) == {f"layer{i}" for i in (1, 2, 3, 4)}
    assert report["largest_difference"] < 1e-4


@pytest.mark.parity
@pytest.mark.parametrize("head", ["classic", "simple"])
def test_vitpose_beside_transformers(head, tmp_path):
    """Tokens after every layer and heatmaps; a tiny and a published width."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from pose_jax import recipe as recipe_
    from pose_jax.convert import parity

    c = load_config("configs/vitpose.py", "s" if head == "classic" else "s-simple")
    described_ = recipe_.recipe(c)
    shapes = described_.shapes()
    leaves = {
        name: torch_weights.make(name, leaf.shape)
        if "var" not in name
        else np.ones(leaf.shape, np.float32)
        for name, leaf in flat_names(shapes).items()
    }
    tree = unflatten_names(shapes, leaves)
    report = parity.report(described_, tree, "vitpose")
    assert report["source"].startswith("transformers")
    assert "layer11/tokens" in report["taps"] and "stack0/heatmaps" in report["taps"]
    assert report["largest_difference"] < 1e-4, report["taps"]
