"""Key numbers side by side: the thesis beside this run, and several runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pose_jax.report import analyses, thesis_numbers
from pose_jax.report.markup import at, interval, paragraph, table, text
from pose_jax.report.thesis_numbers import Published
from pose_jax.writer import read_json


def thesis(folder: Any, index: Mapping[str, Any]) -> str:
    """The thesis's numbers beside those of an analysis; every row names how they differ.

    Raises:
      ValueError: a file is no JSON.
    """
    rows = [
        *_skip_rows(read_json(folder / "skips.json"), index),
        *_latent_rows(read_json(folder / "latent.json"), index),
        *_cluster_rows(read_json(folder / "clusters.json"), index),
    ]
    if not rows:
        return ""
    heads = ("", "thesis", "this run", "measured there on", "measured here on")
    note = (
        "Two networks, two data sets, two crop rules: the numbers stand beside each other, "
        "they do not confirm or refute each other."
    )
    made = table(heads, rows, "Thesis beside this run")
    return f"<h4>The thesis beside this run</h4>\n{made}{paragraph(note, 'note')}"


def _row(published: Published, value: Any, here: str) -> list[str]:
    there = published.value
    shown = text(int(there) if float(there).is_integer() else float(there))
    return [
        text(published.name), shown, text(value), text(published.protocol), text(here)
    ]  # fmt: skip


def _skip_rows(record: Mapping[str, Any] | None, index) -> list[list[str]]:
    if record is None:
        return []
    split = "train" if "train" in record["splits"] else list(record["splits"])[-1]
    found = record["splits"][split]
    style = "zero" if "zero" in found["styles"] else next(iter(found["styles"]))
    source = at(index, "splits", split).get("source", "unknown")
    kind = "" if split == "train" else ", not the training split"
    here = (
        f"{found['people']:,} people of {source} ({split}{kind}); labels' boxes instead of "
        f"keypoint extents; same measure: heatmap PCK, mean over people; closed: {style}"
    )
    subsets = found["styles"][style]["subsets"]
    pairs = ((thesis_numbers.SKIPS_ON, -1), (thesis_numbers.SKIPS_OFF, 0))
    return [_row(said, subsets[n]["heatmap_pck"], here) for said, n in pairs]


def _latent_rows(record: Mapping[str, Any] | None, index) -> list[list[str]]:
    if record is None:
        return []
    found = record["pca"]
    labelled = at(record, "question").get("labelled", "–")
    here = (
        f"{found['samples']:,} people of {_first_source(index)}, {labelled} labelled; "
        f"{record['tap']}, {found['values']:,} values"
    )
    share = found["shares"][0] if found["shares"] else None
    return [
        _row(thesis_numbers.COMPONENTS_95, found["components_for_95"], here),
        _row(thesis_numbers.FIRST_SHARE, share, here),
    ]


def _cluster_rows(record: Mapping[str, Any] | None, index) -> list[list[str]]:
    if record is None:
        return []
    best = str(record["best"])
    people = sum(record["counts"][best]["sizes"])
    labelled = at(record, "question").get("labelled", "–")
    values = f"{people:,} people of {_first_source(index)}, {labelled} labelled"
    here = f"{values}; {record['tap']}; silhouette Euclidean, the same"
    rows = [_row(thesis_numbers.BEST_K, record["best"], here)]
    for name, published in thesis_numbers.SILHOUETTES.items():
        for k in dict.fromkeys((thesis_numbers.BEST_K.value, record["best"])):
            if str(int(k)) in record["counts"] and int(k) in published:
                said = Published(
                    f"silhouette, K = {int(k)}", published[int(k)],
                    f"{name.removeprefix('thesis, ')}, 256x256 COCO; read off a figure",
                )  # fmt: skip
                rows.append(
                    _row(said, record["counts"][str(int(k))]["silhouette"], here)
                )
    return rows


def _first_source(index: Mapping[str, Any]) -> str:
    splits = list(index["splits"].values())
    return str(splits[0]["source"]) if splits else "unknown"


def runs(workdirs: Sequence[Any]) -> str:
    """One table of the key numbers of several workdirs, a column per analysis.

    Raises:
      ValueError: a workdir has no analysis, or a file is no JSON or not whole.
    """
    columns: list[tuple[str, dict[str, str]]] = []
    for workdir in workdirs:
        folders = [p.parent for p in sorted(workdir.glob("analysis/*/index.json"))]
        if not folders:
            raise ValueError(
                f"{workdir} has no analysis; run the task 'analyse' there or take it out of "
                "report.beside"
            )
        for folder in folders:
            try:
                found = _key_numbers(workdir, folder)
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{folder} holds a record that is not whole ({error!r}); delete it and "
                    "run 'analyse' again"
                ) from None
            columns.append((f"{workdir.name}: {folder.name}", found))
    names = dict.fromkeys(key for _, found in columns for key in found)
    names.pop("protocol", None)
    rows = [
        [text(name), *(found.get(name, "–") for _, found in columns)]
        for name in (*names, "protocol")
    ]
    heads = ["", *(name for name, _ in columns)]
    made = table(heads, rows, "Runs beside each other")
    note = (
        "A column is one network on its own data and protocol (last row); only columns with "
        "the same protocol can be compared, and each is one training."
    )
    return f"<h3>Beside other runs</h3>\n{made}{paragraph(note, 'note')}"


def _key_numbers(workdir, folder) -> dict[str, str]:
    index = read_json(folder / "index.json")
    health, protocols = index["health"], []
    found = _result(workdir, folder.name, protocols)
    found["PCK@0.1, people of the analysis"] = text(health["pck"])
    found["PCK@0.1 of the mean pose"] = text(health["mean_pose_pck"])
    if why := analyses.problem(index):
        return found | {"protocol": text(f"not analysed: {why}")}
    if (record := read_json(folder / "skips.json")) is not None:
        found |= _skip_numbers(record)
        protocols.append(f"skips: {record['protocol']}")
    if (record := read_json(folder / "latent.json")) is not None:
        pca = record["pca"]
        found["tap"] = text(record["tap"])
        found["components for 95 %, of values"] = (
            f"{text(pca['components_for_95'])} of {text(pca['values'])}"
        )
        found["share of the first component"] = text((pca["shares"] or [None])[0])
        protocols.append(f"latent: {record['protocol']}")
    if (record := read_json(folder / "clusters.json")) is not None:
        best = record["counts"][str(record["best"])]
        found["K of the best silhouette"] = text(record["best"])
        found["best silhouette"] = text(best["silhouette"])
        found["stability there"] = text(best.get("stability"))
        protocols.append(f"clusters: {record['protocol']}")
    return found | {"protocol": "<br>".join(map(text, protocols)) or "–"}


def _result(workdir, name: str, protocols: list[str]) -> dict[str, str]:
    """PCK of the evaluation that the analysis is named after, else of the first one."""
    results = read_json(workdir / "results.json", {})
    known = {n: r for n, r in results.items() if at(r, "pck").get("thresholds")}
    mine = [n for n in known if n.startswith(name)] or list(known)
    if not mine:
        return {}
    record = known[mine[0]]
    pck = record["pck"]
    middle = len(pck["thresholds"]) // 2
    ends = (pck.get("interval_95") or [None] * (middle + 1))[middle]
    protocols.append(f"results: {record.get('protocol', mine[0])}")
    label = f"{pck.get('name', 'PCK')}@{pck['thresholds'][middle]:g}, results"
    return {label: f"{text((pck.get('micro') or [None])[middle])} {interval(ends)}"}


def _skip_numbers(record: Mapping[str, Any]) -> dict[str, str]:
    made = {}
    for split, found in record["splits"].items():
        for style, values in found["styles"].items():
            whole, closed = values["subsets"][-1], values["subsets"][0]
            made[f"PCK, all skips open, {split}"] = _cell(whole["pck"]["all"])
            made[f"PCK, all closed ({style}), {split}"] = _cell(closed["pck"]["all"])
            if style == "zero":
                made[f"heatmap PCK, open / closed (zero), {split}"] = (
                    f"{text(whole['heatmap_pck'])} / {text(closed['heatmap_pck'])}"
                )
    return made


def _cell(record: Mapping[str, Any]) -> str:
    ends = [record.get("low"), record.get("high")]
    return f"{text(record['value'])} {interval(ends)}"
