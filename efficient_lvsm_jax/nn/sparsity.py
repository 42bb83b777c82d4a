"""How sparse attention is: the settings of a place, in text and in numbers, and what it costs.

`nn.sparse_linear` computes it. Axes: K head dim, D width.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.flops import Flops, scores

FEATURES = {
    # elu(x) + 1; its own formula loses small values of it.
    "elu": lambda x: jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x))),
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
}
# Of fewer blocks of keys all are read: choosing and fetching some would take as long.
FROM_BLOCKS = 16
ENTRY = re.compile(
    r"(?P<place>\w+)=(?P<density>[\d.e-]+)"
    r"(?::(?P<by>token|block|class)(?:(?P<queries>\d+)(?:x(?P<keys>\d+))?)?)?"
    r"(?::from(?P<fewest>\d+))?"
)


@dataclasses.dataclass(frozen=True)
class Sparsity(Settings):
    """Which keys a query attends to exactly, and which are in the sums.

    Attributes:
      density: share of keys, or of blocks of keys, that are attended to exactly; at least one is.
        Of tokens and classes the count is rounded down.
      by: what is chosen: "token", each query its keys; "block", each block of queries its blocks of
        keys, by the means of both; "class", likewise, and of the other blocks some are left out
        altogether. All keys are in the sums, by "class" only those that are neither.
      query_block, key_block: tokens of a block; by "token", of queries that are computed together.
      from_keys: where there are fewer keys, a place in a model is dense, see `attend_by`.
      negligible: by "class", the share of blocks, of the lowest scores, that are left out; at least
        one, rounded down. A block that is also chosen is attended to.
      features: φ: "elu", elu(x) + 1, or "softmax" over the channels.
      epsilon: added to φ(q) Σ φ(k).
      round_down: the count of blocks by "block", as the published SLA does it; otherwise it goes to
        the nearest, half to even, as Lite3R does.
    """

    density: float = setting(0.3, above=0, at_most=1)
    by: str = setting("block", choices=("token", "block", "class"))
    query_block: int = setting(64, at_least=1)
    key_block: int = setting(64, at_least=1)
    negligible: float = setting(0.1, at_least=0, at_most=1)
    features: str = setting("elu", choices=FEATURES)
    epsilon: float = setting(1e-6, above=0)
    round_down: bool = False
    from_keys: int = setting(0, at_least=0)

    def kept(self, count: int) -> int:
        """How many of so many keys, or blocks of keys, are attended to exactly."""
        share = self.density * count
        to_nearest = self.by == "block" and not self.round_down
        return max(1, round(share) if to_nearest else int(share))

    def digest_bytes(self, heads: int, head_dim: int, keys: int) -> int:
        """Of the digest of a page of so many keys, of one layer."""
        blocks = -(-keys // self.key_block)
        return 4 * heads * (head_dim * (head_dim + 2 + blocks) + 1)


def attention_flops(
    sparsity: Sparsity | None,
    width: int,
    head_dim: int,
    queries: int,
    keys: int,
    *,
    pages: int = 1,
    summed: int | None = None,
) -> Flops:
    """Of attention at a place over all heads, with P where it is sparse.

    Args:
      sparsity: of the place; None, or fewer keys than its `from_keys`: it is dense.
      width, head_dim: D and K.
      queries: how many.
      keys: of a page, in which blocks lie.
      pages: how many.
      summed: keys of which a digest is made; None: all.
    """
    if sparsity is None or keys * pages < sparsity.from_keys:
        return scores(width, queries, keys * pages)
    reading = 2 * queries * (head_dim + 1) * width
    sums = 2 * (keys * pages if summed is None else summed) * head_dim * width
    size = min(sparsity.key_block, keys)
    blocks = pages * -(-keys // size)
    pairs = -(-queries // sparsity.query_block) * blocks
    if sparsity.by == "token":  # all scores are there to choose from, and all values are read
        exact, choosing = scores(width, queries, keys * pages), 0
    else:
        exact, choosing = scores(width, queries, sparsity.kept(blocks) * size), 2 * pairs * width
    if sparsity.by == "class":  # sums of blocks are added up for each block of queries
        sums += 2 * pairs * (head_dim + 1) * width
    return exact + Flops(2 * queries * head_dim * width, choosing + reading + sums)


def placed(text: str, places: Collection[str]) -> dict[str, Sparsity]:
    """The sparsity of places in a model, of the text of the setting `model.attention_sparsity`.

    Args:
      text: PLACE=DENSITY of each place that is not dense, with commas between. What is chosen and
        in blocks of how many may follow, as in "frame=0.3,global=0.3:token,camera=0.05:class5"; of
        queries and of keys, as in "cross=0.3:block128x64"; and from how many keys on, as in
        "cross=0.3:from0", where otherwise FROM_BLOCKS blocks of keys are the fewest.
      places: that the model has.

    Raises:
      InputError: another text, a place that is unknown or named twice, or a density out of bounds.
    """
    found: dict[str, Sparsity] = {}
    for entry in filter(None, text.split(",")):
        match = ENTRY.fullmatch(entry.strip())
        if not match or match["place"] not in places or match["place"] in found:
            raise InputError(
                f"model.attention_sparsity={text!r}: {entry!r}: expected PLACE=DENSITY or "
                f"PLACE=DENSITY:block64 (or token, class5, block128x64, block64:from4096), each "
                f"place once, of {', '.join(places)}"
            )
        queries = int(match["queries"] or 64)
        keys = int(match["keys"] or queries)
        fewest = int(match["fewest"] or FROM_BLOCKS * keys)
        try:
            density = float(match["density"])
            found[match["place"]] = Sparsity(
                density, match["by"] or "block", queries, keys, from_keys=fewest
            )
        except (ValueError, InputError) as error:
            raise InputError(f"model.attention_sparsity={text!r}: {entry!r}: {error}") from None
    return found


def in_strips(rows: int, columns: int, block: int) -> np.ndarray:
    """An order of the patches of a picture in which every block of them lies close together.

    Strips as high as a square block are walked column by column, to and fro. Where both sides are
    multiples of that, blocks are squares; elsewhere some reach into the next strip, where the last
    ended. Blocks several times as large are as compact as rectangles of these.

    Returns:
      [rows * columns] indices of patches in raster order.
    """
    height = math.isqrt(block)
    grid = np.arange(rows * columns).reshape(rows, columns)
    strips = [grid[top : top + height] for top in range(0, rows, height)]
    turned = (strip[:, :: (-1) ** index] for index, strip in enumerate(strips))
    return np.concatenate([strip.T.ravel() for strip in turned])
