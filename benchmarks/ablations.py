"""Two claims of the paper at toy scale: co-refinement, and self- beside cross-attention.

    python benchmarks/ablations.py --workdir runs/ablations [--steps 250] [--seeds 0 1 2]

Trains configs/tiny.py on generated scenes with each variant and seed for the same number of steps,
scores all on the same held-out scenes, and prints the table of docs/reproduction.md, ± being the
standard error over seeds. A variant
differs from the model in one place:

    published               every decoder layer reads the encoder layer of its index, and attends
                            within its view before that
    last layer only         every decoder layer reads the last encoder layer: no co-refinement
    cross-attention only    decoder layers have no self-attention; fewer parameters and FLOPs

Variants are model families of this program alone; nothing else knows them.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
from flax import nnx
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import tiny
from efficient_lvsm_jax.cache import ViewCache
from efficient_lvsm_jax.cameras import Views
from efficient_lvsm_jax.checkpoints import load
from efficient_lvsm_jax.layers import Initializer
from efficient_lvsm_jax.models import FAMILIES, abstract_params, configure
from efficient_lvsm_jax.models.efficient_lvsm import (
    DecoderLayer,
    EfficientLVSM,
    EfficientLVSMConfig,
)
from efficient_lvsm_jax.models.transformer import scan_layers, stack
from eval import Options, evaluate
from train import train


class LastLayerOnly(EfficientLVSM):
    """All pages are made of what leaves the last encoder layer."""

    def encode_with_taps(
        self, views: Views, layers: tuple[int, ...]
    ) -> tuple[ViewCache, jax.Array | None]:
        """As of the base class; the projections to keys and values stay one per decoder layer."""
        x, taps, _ = scan_layers(
            self.config,
            lambda x, layer: (layer(x), None),
            self.input_tokens(views),
            self.encoder,
            layers=self.config.layers,
            taps=layers,
        )
        cross_layers = self.decoder.cross_attention
        _, (k, v) = jax.lax.scan(lambda _, layer: (None, layer.keys_values(x)), None, cross_layers)
        return ViewCache(k, v), taps


class CrossOnlyLayer(DecoderLayer):
    """Cross-attention to the inputs, then an MLP."""

    def __init__(self, config: EfficientLVSMConfig, *, init: Initializer, rngs: nnx.Rngs):
        super().__init__(config, init=init, rngs=rngs)
        del self.self_attention

    def __call__(self, x: jax.Array, attend_memory: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return self.mlp(self.cross_attention(x, attend_memory))


class CrossOnly(EfficientLVSM):
    """Target tokens of a view never see each other."""

    def __init__(self, config: EfficientLVSMConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        layer = functools.partial(CrossOnlyLayer, config)
        self.decoder = stack(layer, config.layers, config.decoder_init, rngs)


VARIANTS = {
    "published": "efficient_lvsm",
    "last layer only": "last_layer_only",
    "cross-attention only": "cross_only",
}
FAMILIES["last_layer_only"] = (EfficientLVSMConfig, LastLayerOnly)
FAMILIES["cross_only"] = (EfficientLVSMConfig, CrossOnly)


def configured(family: str, seed: int, steps: int) -> ConfigDict:
    """configs/tiny.py, two inputs a scene, its schedule squeezed into so many steps."""
    config = tiny.get_config()
    config.family, config.seed, config.steps = family, seed, steps
    config.checkpoint_every = steps
    config.log.update(pictures_every=0, tensorboard=False, every=50)
    config.optimizer.update(warmup_steps=steps // 25, decay_start=steps * 3 // 10, decay_end=steps)
    config.data.update(num_inputs_cycle=(2,), scenes=8 * steps)  # every one once
    config.evaluation.update(added_one_by_one=(), film_frames=0)
    return config


def parameters(config: ConfigDict) -> int:
    """Their number."""
    shapes = abstract_params(config.family, configure(config.family, config.model.to_dict()))
    return sum(x.size for x in jax.tree.leaves(shapes))


def main() -> None:
    """Trains, scores, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()

    scores = {name: [] for name in VARIANTS}
    seconds, sizes = {}, {}
    for seed in arguments.seeds:
        for name, family in VARIANTS.items():
            config = configured(family, seed, arguments.steps)
            # The held-out scenes are the same for all seeds.
            workdir = arguments.workdir / f"{family}-{seed}"
            started = time.monotonic()
            train(config, workdir)
            seconds.setdefault(name, []).append(time.monotonic() - started)
            sizes[name] = parameters(config)
            config.seed = arguments.seeds[0]
            metrics = evaluate(config, load(workdir), workdir / "evaluation", Options())
            scores[name].append(metrics["summary"]["psnr"])
            print(f"{name}, seed {seed}: {scores[name][-1]:.2f} dB", flush=True)

    print(
        f"| variant | parameters | {' | '.join(f'seed {s}' for s in arguments.seeds)} "
        "| mean, dB | less than published, dB | training, s |"
    )
    print("|---" * (5 + len(arguments.seeds)) + "|")
    for name, found in scores.items():
        behind = [a - b for a, b in zip(scores["published"], found, strict=True)]
        error = f" ± {statistics.stdev(behind) / len(behind) ** 0.5:.2f}" if any(behind) else ""
        row = [name, f"{sizes[name] / 1e6:.2f} M", *(f"{score:.2f}" for score in found)]
        row += [f"{statistics.mean(found):.2f}", f"{statistics.mean(behind):.2f}{error}"]
        print(f"| {' | '.join(row)} | {statistics.median(seconds[name]):.0f} |")


if __name__ == "__main__":
    main()
