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

import functools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.toy_training import behind, parameters, squeezed, study_parser, trained_score
from configs import tiny
from efficient_lvsm_jax.geometry.cameras import Views
from efficient_lvsm_jax.models.efficient_lvsm import (
    DecoderLayer,
    EfficientLVSM,
    EfficientLVSMConfig,
)
from efficient_lvsm_jax.models.families import Family, register
from efficient_lvsm_jax.nn.layers import Initializer
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.positions import Positions
from efficient_lvsm_jax.nn.stacks import stack, walk_layers


class LastLayerOnly(EfficientLVSM):
    """All pages are made of what leaves the last encoder layer."""

    def encode_with_taps(
        self, views: Views, layers: tuple[int, ...]
    ) -> tuple[Pages, jax.Array | None]:
        """As of the base class; the projections to keys and values stay one per decoder layer."""
        positions = self.positions(views.cameras)
        x, taps, _ = walk_layers(
            self.config,
            lambda x, layer: (layer(x, positions and positions.within_views()), None),
            self.input_tokens(views),
            self.encoder,
            layers=self.config.layers,
            taps=layers,
        )
        cross_layers = self.decoder.cross_attention
        return jax.lax.scan(lambda _, layer: (None, layer.pages(x, positions)), None, cross_layers)[
            1
        ], taps


class CrossOnlyLayer(DecoderLayer):
    """Cross-attention to the inputs, then an MLP."""

    def __init__(self, config: EfficientLVSMConfig, *, init: Initializer, rngs: nnx.Rngs):
        super().__init__(config, init=init, rngs=rngs)
        del self.self_attention

    def __call__(
        self,
        x: jax.Array,
        attend_memory: Callable[[jax.Array], jax.Array],
        positions: Positions | None,
    ) -> jax.Array:
        return self.mlp(self.cross_attention(x, attend_memory, positions))


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
register(Family("last_layer_only", EfficientLVSMConfig, LastLayerOnly))
register(Family("cross_only", EfficientLVSMConfig, CrossOnly))


def main() -> None:
    """Trains, scores, prints."""
    arguments = study_parser(__doc__).parse_args()

    scores = {name: [] for name in VARIANTS}
    sizes = {}
    for seed in arguments.seeds:
        for name, family in VARIANTS.items():
            config = squeezed(tiny.get_config(), seed=seed, steps=arguments.steps)
            config.family = family
            sizes[name] = parameters(config)
            workdir = arguments.workdir / f"{family}-{seed}"
            # The held-out scenes are the same for all seeds.
            score = trained_score(config, workdir, evaluation_seed=arguments.seeds[0])
            scores[name].append(score)
            print(f"{name}, seed {seed}: {scores[name][-1]:.2f} dB", flush=True)

    print(
        f"| variant | parameters | {' | '.join(f'seed {s}' for s in arguments.seeds)} "
        "| mean, dB | less than published, dB |"
    )
    print("|---" * (4 + len(arguments.seeds)) + "|")
    for name, found in scores.items():
        row = [name, f"{sizes[name] / 1e6:.2f} M", *(f"{score:.2f}" for score in found)]
        row += [f"{statistics.mean(found):.2f}", behind(found, scores["published"])]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
