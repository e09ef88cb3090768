"""What maps of all joints cost, on an hourglass.

    python tests/benchmarks/attribution.py [--tiny]

Gradients: the maps of 17 joints from one forward pass and 17 signals side by side, against a
loop over targets that is compiled as well, and against captum's Saliency over the same weights in
PyTorch where both are installed (`pip install -e .[benchmark]`). Occlusion: 841 windows against
841 plain forward passes in the fastest batch. Integrated gradients: memory of 50 steps for 17
joints as XLA plans it, against the estimate before compiling.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from pose_jax import models
from pose_jax.explain import gradients, memory, occlusion
from pose_jax.trees import flat_names

JOINTS = 17


def best(run, repeats: int) -> float:
    """Seconds of the fastest call, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return min(times)


def score(outputs):
    """The middle of every map."""
    maps = outputs.heatmaps[-1, 0]
    return maps[maps.shape[0] // 2, maps.shape[1] // 2]


def network(side: int, features: int):
    stem = (features // 4, features // 2, features // 2)
    config = dict(name="hourglass", stacks=1, features=features, stem=stem)
    module = models.build(config, num_keypoints=JOINTS)
    image = np.random.default_rng(0).normal(size=(side, side, 3)).astype(np.float32)
    key = jax.random.key(0, impl="unsafe_rbg")
    variables = jax.jit(module.init)(key, image[None])
    return module, variables, image


def joints(module, variables, image, repeats: int) -> dict[str, float]:
    every = jax.jit(
        lambda v, x: gradients.saliency(module.apply, v, x, score)
    ).lower(variables, image).compile()  # fmt: skip

    @jax.jit
    def one(variables, image, joint):
        def chosen(image):
            return score(module.apply(variables, image[None]))[joint]

        return jnp.abs(jax.grad(chosen)(image)).max(-1)

    def loop():
        return [one(variables, image, joint) for joint in range(JOINTS)]

    found = {
        "all_joints_s": best(lambda: every(variables, image), repeats),
        "loop_s": best(loop, repeats),
    }
    if all(importlib.util.find_spec(name) for name in ("torch", "captum")):
        found["captum_s"] = captum(variables, image, module.config, repeats)
        found["captum_over_ours"] = found["captum_s"] / found["all_joints_s"]
    found["loop_over_ours"] = found["loop_s"] / found["all_joints_s"]
    return found


def captum(variables, image, config, repeats: int) -> float:
    import torch
    from captum.attr import Saliency
    from torch_hourglass import Hourglass, load

    model = Hourglass(1, config.features, config.stem, JOINTS).eval()
    load(model, {name: np.asarray(x) for name, x in flat_names(variables).items()})
    pixels = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())

    class Middle(torch.nn.Module):
        def forward(self, x):
            maps = model(x)[-1]
            return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]

    method = Saliency(Middle())

    def loop():
        return [
            method.attribute(pixels.requires_grad_(), target=k).numpy().max()
            for k in range(JOINTS)
        ]

    return best(loop, repeats)


def windows(module, variables, image, repeats: int) -> dict[str, float]:
    found = {}
    for chunk in (8, 32, 128):
        program = jax.jit(
            lambda v, x, chunk=chunk: occlusion.occlusion(
                module.apply, v, x, score, chunk=chunk
            )
        )
        found[chunk] = best(lambda p=program: p(variables, image), repeats)
    rows, columns = occlusion._windows(image.shape, None, None)
    count = len(rows) * len(columns)
    plain = {}
    forward = jax.jit(lambda v, x: module.apply(v, x).heatmaps[-1])
    for batch in (8, 32, 128):
        images = jnp.asarray(np.repeat(image[None], batch, 0))
        once = best(lambda x=images: forward(variables, x), repeats)
        plain[batch] = once * count / batch
    return {
        "windows": count,
        "occlusion_s": min(found.values()),
        "as_many_forwards_s": min(plain.values()),
        "of_forwards": min(found.values()) / min(plain.values()),
    }


def integrated(module, variables, image) -> dict[str, float]:
    found = {}
    for chunk in (1, 0):
        program = jax.jit(
            lambda v, x, chunk=chunk: gradients.integrated_gradients(
                module.apply, v, x, score, steps=50, chunk=chunk
            )
        )
        plan = program.lower(variables, image).compile().memory_analysis()
        estimate = memory.gradient_bytes(
            module.apply, variables, image, score, chunk=chunk
        )
        name = f"joints_at_once_{chunk or JOINTS}"
        found[f"{name}_planned_mib"] = plan.temp_size_in_bytes / 2**20
        found[f"{name}_estimated_mib"] = estimate / 2**20
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="64 pixels, 32 channels")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    side, features = (64, 32) if options.tiny else (256, 256)
    parts = network(side, features)
    found = {
        "jax": jax.__version__,
        "pixels": side,
        "features": features,
        "gradients": joints(*parts, options.repeats),
        "occlusion": windows(*parts, options.repeats),
        "integrated_gradients": integrated(*parts),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
