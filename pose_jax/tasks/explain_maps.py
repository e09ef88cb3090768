"""`explain` with a method that gives maps: where is the evidence for every joint?

Writes `explain/<method>-<score>-<split>/`: `part-*.npz` as it goes (the same command resumes),
then `maps.npz` (per person the share of every map on every body part), `pictures.npz` (crops and
whole maps of a few people), `maps.json` (settings, protocol, means with intervals) and
`figures/`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pose_jax import checkpoint, geometry, regions
from pose_jax.config import UserError, to_plain
from pose_jax.estimator import fit_variables
from pose_jax.explain.making import make_explainer
from pose_jax.explain.maps import MapExplainer, MapExplanation
from pose_jax.explain.planted import pool
from pose_jax.intervals import mean_interval
from pose_jax.recipe import recipe
from pose_jax.tasks.arrays import load_arrays, plain, save_arrays
from pose_jax.tasks.explain_people import People, open_people
from pose_jax.trees import fingerprint
from pose_jax.writer import ProgressBar, is_main_process, read_json, say, write_json

_OF_RUN = (
    "method", "score", "reference", "removal", "tap", "options", "side", "count", "inputs",
    "boxes", "batch", "figures",
)  # fmt: skip
_KEPT = (
    "full",
    "empty",
    "target_valid",
    "constant",
    "keypoints",
    "keypoint_scores",
    "box",
)


def run(config: Any, workdir: str) -> None:
    """Explain `config.explain.count` people.

    Raises:
      UserError: nobody to explain, or the folder holds answers to another question.
    """
    if not is_main_process():
        return
    section = config.explain
    described = recipe(read_json(epath.Path(workdir) / "config.json") or config)
    tree, step = checkpoint.load_variables(workdir, section.checkpoint)
    model = described.inference(fit_variables(described, tree))
    explainer = make_explainer(
        *model, method=section.method, score=section.score, removal=section.removal,
        tap=section.tap or None, options=to_plain(section.options),
        key=jax.random.key(config.seed),
    )  # fmt: skip
    assert isinstance(explainer, MapExplainer)
    people = open_people(config, described)
    score = explainer.asks(people.labelled)[0]
    folder = (
        epath.Path(workdir) / "explain" / f"{section.method}-{score}-{section.split}"
    )
    asked = {
        **{name: to_plain(section[name]) for name in _OF_RUN},
        "step": step, "data": people.name, "people": [s.id for s in people.subjects],
        "weights": fingerprint(tree),
    }  # fmt: skip
    _claim(folder, asked)
    arrays = _parts(folder, explainer, people, section)
    record = summarise(arrays, explainer, people, section, step)
    write_json(folder / "maps.json", record)
    undefined = record["undefined"]
    said = f", {undefined} maps constant and left out" if undefined else ""
    say(f"{len(people)} people of {people.name}: {section.method}{said}; {folder}")
    from pose_jax.report import map_figures

    paths = map_figures.draw_folder(folder)
    say(f"figures: {', '.join(p.name for p in paths)} in {folder}/figures")


def _claim(folder, asked: dict[str, Any]) -> None:
    stored = read_json(folder / "index.json")
    names = [k for k in asked if k in (stored or {}) and stored[k] != asked[k]]
    if names:
        raise UserError(
            f"{folder} answers another question ({', '.join(names)} differ); choose another "
            "explain.split, or delete the folder"
        )
    if stored is None:
        write_json(folder / "index.json", asked)


def _parts(
    folder, explainer: MapExplainer, people: People, section: Any
) -> dict[str, np.ndarray]:
    """Everybody's arrays, explaining who is not explained yet."""
    numbers = list(range(len(people)))
    batches = [
        numbers[i : i + section.batch] for i in range(0, len(people), section.batch)
    ]
    spread = np.linspace(0, len(people) - 1, min(section.figures, len(people)))
    kept = set(spread.astype(int).tolist())
    with ProgressBar(len(people), "explain") as bar:
        for number, batch in enumerate(batches):
            path = folder / f"part-{number:04d}.npz"
            if not path.exists():
                crops = people.crops(batch, other=section.removal == "other")
                found = explainer(crops, room=min(section.batch, len(people)))
                save_arrays(path, _arrays(found, batch, kept, explainer, section.side))
            bar.update(batch[-1] + 1)
    parts = [load_arrays(folder / f"part-{n:04d}.npz") for n in range(len(batches))]
    merged = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    pictures = {
        name.removeprefix("picture_"): merged.pop(name)
        for name in list(merged)
        if name.startswith("picture_")
    }
    save_arrays(folder / "pictures.npz", pictures)
    merged["id"] = np.array([s.id for s in people.subjects])
    merged["image_id"] = np.array(people.groups)
    save_arrays(folder / "maps.npz", merged)
    return merged


def _arrays(
    found: list[MapExplanation], batch: list[int], kept: set[int], explainer: Any, side: float
) -> dict[str, np.ndarray]:  # fmt: skip
    """What is kept of some people: shares on parts of all, maps of a few."""
    size = explainer.recipe.spec.size
    rows: dict[str, list] = {name: [] for name in ("mass", "density", "points_at")}
    for one in found:
        owners = part_owners(one, size, side)
        k = len(one.maps)
        mass, density = pool(one.maps, owners, k + 1)
        rows["mass"].append(mass)
        rows["density"].append(density)
        flat = np.abs(one.maps).reshape(k, -1)
        peak = owners.ravel()[np.nan_to_num(flat).argmax(1)]
        rows["points_at"].append(np.where(one.constant, -1, peak))
    arrays = {name: np.stack(values) for name, values in rows.items()}
    for name in _KEPT:
        arrays[name] = np.stack([np.asarray(getattr(one, name)) for one in found])
    drawn = [n for n, number in enumerate(batch) if number in kept]
    shape = found[0].maps.shape
    maps = [found[n].maps for n in drawn]
    arrays["picture_of"] = np.array([batch[n] for n in drawn], int)
    arrays["picture_maps"] = np.array(maps, np.float32).reshape(-1, *shape)
    images = [found[n].image for n in drawn]
    arrays["picture_image"] = np.array(images, np.uint8).reshape(-1, *shape[1:], 3)
    points = [_in_crop(found[n]) for n in drawn]
    arrays["picture_points"] = np.array(points).reshape(-1, shape[0], 2)
    return arrays


def part_owners(one: MapExplanation, size: tuple[int, int], side: float) -> np.ndarray:
    """`[h, w]` the keypoint whose disc a pixel belongs to; the number of keypoints for the
    rest of the crop. Discs lie where the model put the joints."""
    points = jnp.asarray(_in_crop(one), jnp.float32)
    inside = regions.inside(points, size)
    found = regions.keypoint_owners(points, inside, size, side_px=side * size[0])
    return np.where(np.asarray(found) < 0, len(points), np.asarray(found))


def _in_crop(one: MapExplanation) -> np.ndarray:
    return geometry.transform(np.asarray(one.keypoints, np.float64), one.matrix)


def summarise(
    arrays: dict[str, np.ndarray], explainer: MapExplainer, people: People, section: Any,
    step: int,
) -> dict[str, Any]:  # fmt: skip
    """Settings, protocol, and where the maps lie, with intervals over pictures."""
    skeleton = explainer.recipe.skeleton
    score, reference = explainer.asks(people.labelled)
    k = len(skeleton.keypoints)
    valid = arrays["target_valid"] & ~arrays["constant"]
    shares = {
        name: np.where(valid[:, None], arrays[name], np.nan)
        for name in ("mass", "density")
    }
    own = np.arange(k)
    readings = {
        "own_mass": shares["mass"][:, own, own],
        "own_density": shares["density"][:, own, own],
        "background_mass": shares["mass"][:, k],
        "points_at_own": np.where(valid, arrays["points_at"] == own, np.nan),
    }
    protocol = [
        f"data {people.name}", f"{len(people)} people", f"method {section.method}",
        *([f"tap {explainer.tap}"] if explainer.tap else []),
        f"score {score} against {reference}", f"removal {section.removal}",
        f"parts: discs of {section.side:g} x crop height at the predicted joints",
        "no flip test", f"step {step}",
    ]  # fmt: skip
    return {
        "protocol": "; ".join(protocol),
        "method": section.method,
        "score": score,
        "reference": reference,
        "removal": section.removal,
        "tap": explainer.tap,
        "step": step,
        "people": len(people),
        "skeleton": skeleton.name,
        "keypoints": list(skeleton.keypoints),
        "parts": [*skeleton.keypoints, "elsewhere"],
        "undefined": int((arrays["constant"] & arrays["target_valid"]).sum()),
        "mass": _mean(shares["mass"], people.groups),
        "density": _mean(shares["density"], people.groups),
        **{name: _mean(values, people.groups) for name, values in readings.items()},
    }


def _mean(values: np.ndarray, groups: list[str]) -> dict[str, Any]:
    """Mean over people, interval, and how many there were."""
    count = np.isfinite(values).sum(0)
    total = np.where(np.isfinite(values), values, 0.0).sum(0)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    low, high = mean_interval(values, groups)
    return {
        "mean": plain(mean), "low": plain(low), "high": plain(high), "count": count.tolist()
    }  # fmt: skip
