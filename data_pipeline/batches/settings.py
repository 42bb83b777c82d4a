"""What training sees: the settings of its batches."""

from __future__ import annotations

import dataclasses

from data_pipeline.batches.views import check_counts
from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """What training sees.

    Attributes:
      path: what `formats.open_scenes` reads; "" trains on generated scenes.
      split: of that data set, if it has several; "" is the one of which a part was held out.
      scenes, views: generated scenes and their views.
      size: height and width of the pictures. Frames of another size are resized and cropped
        (`transforms.crop_into`).
      patch: a frame's width is rounded to a multiple of it when it is resized, as published.
      batch_size: scenes of a batch, of all processes together.
      num_inputs_cycle: input views of the scenes of batch 0, 1, 2, …, starting over at the end; so
        a batch has one shape and as many shapes are compiled as there are different numbers.
      num_targets: target views of a scene; 0: none, the inputs are a clip in the order of the film
        (`views.draw_clip`), for a model of geometry.
      depth: of a clip, also the depth of its frames, in the world's unit.
      queries: of a clip, so many pixels of its first frame to be tracked, drawn from those whose
        depth is known, where it is asked for; all (0, 0) if there are fewer.
      target_has_input: targets are drawn from all views drawn, inputs included.
      min_distance, max_distance: frames between the first and the last view drawn, in the order of
        the film (`Scene.film`), see `views.draw_window`; max_distance 0 draws any views of a scene
        (`views.draw_views`).
      normalise_poses: poses in the frame of all views drawn, as published for scenes; object
        renders share a frame already and are trained without, and so is depth.
      shuffle_inputs: inputs in random order, not the window's ends first.
      mirror, permute_colours: variations, see `views`.
      skip_unreadable: another scene takes the place of one that cannot be read, and is counted;
        otherwise training ends with an error that names the file.
      threads: that prepare batches while the model computes.
      workers: processes that do instead; 0 uses threads, which suits few cores.
    """

    group = "data"
    path: str = ""
    split: str = ""
    scenes: int = setting(4000, at_least=1)
    views: int = setting(8, at_least=1)
    size: int = setting(48, at_least=1)
    patch: int = setting(8, at_least=1)
    batch_size: int = setting(8, at_least=1)
    num_inputs_cycle: tuple[int, ...] = setting((2, 4, 2, 1), at_least=1)
    num_targets: int = setting(4, at_least=0)
    depth: bool = False
    queries: int = setting(0, at_least=0)
    target_has_input: bool = False
    min_distance: int = setting(25, at_least=1)
    max_distance: int = setting(0, at_least=0)
    normalise_poses: bool = True
    shuffle_inputs: bool = False
    mirror: bool = True
    permute_colours: bool = True
    skip_unreadable: bool = False
    threads: int = setting(1, at_least=1)
    workers: int = setting(0, at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if not self.num_inputs_cycle:
            raise InputError("data.num_inputs_cycle=(): must name at least one number of inputs")
        if self.max_distance and self.max_distance <= self.min_distance:
            raise InputError(
                f"data.max_distance={self.max_distance}: must be above min_distance="
                f"{self.min_distance}, or 0 for any views"
            )
        if self.num_targets and (self.depth or self.queries):
            raise InputError(
                f"data.num_targets={self.num_targets}: data.depth and data.queries are of clips; "
                "set data.num_targets=0"
            )
        if self.depth and self.normalise_poses:
            raise InputError(
                "data.normalise_poses=True: depth is in the world's unit and would not fit the "
                "poses; set data.normalise_poses=False"
            )
        if not self.path:
            self.check_views(self.views)

    def check_views(self, views: int) -> None:
        """Raises InputError unless scenes of this many views are enough for every batch."""
        for num_inputs in self.num_inputs_cycle:
            if not self.num_targets:
                if num_inputs > views:
                    raise InputError(f"clips of {num_inputs} frames, the scenes have {views} views")
                continue
            check_counts(
                views, num_inputs, self.num_targets, target_has_input=self.target_has_input
            )
