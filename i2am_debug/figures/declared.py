"""Every figure of this package, declared once: meaning, unit, direction, default margin, needs, chart and function.

To add one, add it to `FIGURES`, and its test. Scoring, the rules' margins and directions, TensorBoard's tags and charts, the
log, panels, `baseline show`, the tab's names and hints and docs/figures.md are read off this list, and off what
`registry.register_figure` was given. Sources: Park & Jang 2025 for IMACS_g and IMACS_r; the others say what they measure.
Imports no torch: the functions are called with a `PairView`, which does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UndefinedFigure
from .declaration import COPYING_LAYER, DeclaredFigure, Need

if TYPE_CHECKING:
    from .pair_view import PairView

_SCORE = (None, 1.0)  # from minus the penalty, which a run may choose
_SHARE = (0.0, 1.0)
PROBE = "probe/"
_ABOVE_CHANCE = "standard deviations above what masks score that know nothing of the map"


def _layer_imacs_r(v: PairView, layer: str) -> float:
    return v.imacs(v.maps.g2r.by_layer[layer], v.reference_region)


def _layer_imacs_r_hole(v: PairView, layer: str) -> float:
    return v.imacs(v.maps.g2r_region.by_layer[layer], v.reference_region)


def _layer_energy_r_hole(v: PairView, layer: str) -> float:
    return v.energy(v.maps.g2r_region.by_layer[layer], v.reference_region)


IMACS_G = DeclaredFigure(
    tag="imacs_g",
    title="IMACS_g",
    meaning="How far the regions of the generated picture that the reference influences (R2G) lie in the hole, or kept "
    "region: mean of the map inside minus penalty × mean outside.",
    range=_SCORE,
    margin=0.05,
    needs=(Need.HOLE,),
    compute=lambda v: v.imacs(v.maps.r2g.unified, v.region),
    without_each_step=lambda v: v.imacs_without_each(v.maps.r2g.by_step, v.region),
    reference_lines=lambda v: v.imacs_lines(v.maps.r2g, v.region),
    of_further_references=True,
    chart="IMACS_g",
    band=True,
    in_log=True,
    on_panel=True,
    prominence=1,
)
IMACS_R = DeclaredFigure(
    tag="imacs_r",
    title="IMACS_r",
    meaning="How far what the generated picture draws on (G2R) lies on the object in the reference, or kept region, scored as "
    "IMACS_g; over all generated tokens, which can hide what happens in the hole. It tells little of quality "
    "(docs/evidence.md).",
    range=_SCORE,
    margin=0.05,
    needs=(Need.OBJECT, Need.SEVERAL_TOKENS),
    compute=lambda v: v.imacs(v.maps.g2r.unified, v.reference_region),
    compute_of_layer=_layer_imacs_r,
    without_each_step=lambda v: v.imacs_without_each(v.maps.g2r.by_step, v.reference_region),
    reference_lines=lambda v: v.imacs_lines(v.maps.g2r, v.reference_region),
    chart="IMACS_r",
)
IMACS_R_HOLE = DeclaredFigure(
    tag="imacs_r_hole",
    title="IMACS_r of the hole",
    meaning="IMACS_r of what the tokens of the hole, or kept region, alone draw on (of all tokens where a pair has neither).",
    range=_SCORE,
    margin=0.15,
    needs=(Need.OBJECT, Need.SEVERAL_TOKENS),
    compute=lambda v: v.imacs(v.maps.g2r_region.unified, v.reference_region),
    compute_of_layer=_layer_imacs_r_hole,
    without_each_step=lambda v: v.imacs_without_each(v.maps.g2r_region.by_step, v.reference_region),
    without_each_step_of_layer=lambda v, layer: v.layer_imacs_r_hole_without_each(layer),
    lines_of="imacs_r",
    chart="IMACS_r",
)
COPYING_LAYER_IMACS_R_HOLE = DeclaredFigure(
    tag=COPYING_LAYER + IMACS_R_HOLE.tag,
    title="IMACS_r of the hole in the copying layer",
    meaning="IMACS_r of the hole, or kept region, in the layer that had the highest attention information at the baseline: the "
    "one to watch.",
    range=_SCORE,
    margin=0.15,
    needs=IMACS_R_HOLE.needs,
    lines_of="imacs_r",
    watched_as="copying-layer",
    chart="IMACS_r",
    band=True,
    in_log=True,
    on_panel=True,
    prominence=4,
)
ATTENTION_INFORMATION = DeclaredFigure(
    tag="attention_information",
    title="attention information",
    meaning="What a generated token's place in the hole, or kept region, tells about where it looks in the reference, in the "
    "layer where that is most (with neither: any generated token's place).",
    unit="bit",
    range=(0.0, None),
    margin="10%",
    needs=(Need.SEVERAL_TOKENS,),
    compute=lambda v: v.information(),
    compute_of_layer=lambda v, layer: v.information(layer),
    without_each_step=lambda v: v.information_without_each(),
    without_each_step_of_layer=lambda v, layer: v.information_without_each(layer),
    of_further_references=True,
    watched_as="information",
    band=True,
    in_log=True,
    on_panel=True,
    prominence=2,
)
REFERENCE_GAP = DeclaredFigure(
    tag="reference_gap",
    title="reference gap",
    meaning="Loss with another pair's reference minus loss with the right one, same noise and timesteps: towards 0 the "
    "reference is ignored.",
    margin="20%",
    needs=(Need.LOSS, Need.SECOND_PAIR),
    compute=lambda v: v.wrong_reference_loss - v.loss,
    watched_as="gap",
    band=True,
    in_log=True,
    prominence=3,
)
BLANK_GAP = DeclaredFigure(
    tag="blank_gap",
    title="gap to no reference",
    meaning="Loss with a blank reference, a picture of one colour, minus loss with the right one, same noise and timesteps: "
    "what any reference is worth. By teacher forcing of every second pair.",
    needs=(Need.LOSS,),
    compute=lambda v: v.no_reference_loss - v.loss,
)
LOSS = DeclaredFigure(
    tag="loss",
    title="loss",
    meaning="The loss with the pair's own reference, at fixed noise and timesteps; by sampling, how far the picture is from "
    "the truth (mean absolute difference).",
    worse="up",
    margin="20%",
    needs=(Need.LOSS,),
    compute=lambda v: v.loss,
    tells_of_use=False,
    watched_as="loss",
)
LOSS_WRONG_REFERENCE = DeclaredFigure(
    tag="loss_wrong_reference",
    title="loss with a wrong reference",
    meaning="The loss with another pair's reference, same noise and timesteps. It falls where a model learns to do without its "
    "own, and rises with the loss where something else is wrong.",
    worse="up",
    needs=(Need.LOSS, Need.SECOND_PAIR),
    compute=lambda v: v.wrong_reference_loss,
    tells_of_use=False,
)
LOSS_INSIDE = DeclaredFigure(
    tag="loss_inside",
    title="loss inside",
    meaning="The loss inside the hole, or inside what an edit changes.",
    worse="up",
    needs=(Need.LOSS, Need.HOLE),
    compute=lambda v: v.loss_inside(),
    tells_of_use=False,
)
LOSS_OUTSIDE = DeclaredFigure(
    tag="loss_outside",
    title="loss outside",
    meaning="The loss outside the hole, or outside what an edit changes: what needs no reference, or only to be kept.",
    worse="up",
    needs=(Need.LOSS, Need.HOLE),
    compute=lambda v: v.loss_outside(),
    tells_of_use=False,
)


def _not_tried(v: PairView) -> float:
    raise UndefinedFigure(
        "probes are tried at the baseline and when something fires, with those of the first pairs that have what is changed"
    )


def _probe(name: str, what: str) -> DeclaredFigure:
    return DeclaredFigure(
        tag=PROBE + name,
        title=f"loss with {what}",
        meaning=f"The loss with {what}, same noise, at two noise times; of a few pairs, at the baseline and when something "
        "fires. It falls where a model has learned from pairs that are so.",
        worse="up",
        needs=(Need.LOSS, Need.PROBES),
        compute=_not_tried,
        tells_of_use=False,
    )


UNCHANGED = _probe("unchanged", "nothing changed")
PROBES = (
    UNCHANGED,
    _probe("mirrored", "the reference mirrored"),
    _probe("blurred", "the reference blurred"),
    _probe("colours", "the reference's red and blue swapped"),
    _probe("lighter", "the reference in the upper half of its range, as [0, 1] is of [-1, 1]"),
    _probe("faded", "the reference at 0.3 of its contrast"),
    _probe("contrasted", "the reference at 3 times its contrast"),
    _probe("hole_inverted", "the hole inverted"),
    _probe("hole_grown", "a hole of nearly everything"),
    _probe("hole_moved", "the hole moved by a quarter of the width"),
    _probe("target_moved", "the target moved by a quarter of the width"),
    _probe("another_prompt", "another pair's prompt"),
    _probe("as_noise", "the prediction taken for one of the noise"),
    _probe("as_sample", "the prediction taken for one of the clean picture"),
    _probe("as_velocity", "the prediction taken for one of the velocity"),
)
"""How a pair is changed stands in `evaluation.probes`."""
REFERENCE_MASS = DeclaredFigure(
    tag="reference_mass",
    title="reference mass",
    meaning="Share of the generated tokens' attention, over all keys, that falls on the reference; mean over layers.",
    unit="share of the attention",
    range=_SHARE,
    margin="25%",  # not measured: the tiny model has none
    needs=(Need.JOINT_ATTENTION,),
    compute=lambda v: v.reference_mass(),
    of_further_references=True,
    watched_as="mass",
    band=True,
)
EDITED_MASS = DeclaredFigure(
    tag="edited_mass",
    title="reference mass of what is changed",
    meaning="Reference mass of the changed region's tokens alone: those in the hole, or outside the kept region. It tells "
    "nothing of quality (docs/evidence.md).",
    unit=REFERENCE_MASS.unit,
    range=_SHARE,
    needs=(Need.HOLE, Need.JOINT_ATTENTION),
    compute=lambda v: v.edited_mass(),
    of_further_references=True,
)
BRANCH_SHARE = DeclaredFigure(
    tag="branch_share",
    title="branch share",
    meaning="Norm of the reference's branch over that of all branches together; mean over layers.",
    unit="share of the branches",
    range=_SHARE,
    margin="25%",  # not measured: the tiny model has none
    needs=(Need.DECOUPLED_ATTENTION,),
    compute=lambda v: v.branch_share(),
    of_further_references=True,
    watched_as="branch",
)
IMACS_G_CENTRED = DeclaredFigure(
    tag="imacs_g_centred",
    title="IMACS_g, centred",
    meaning="IMACS_g of the softmax of the logits minus their mean over the reference, which no shift of a generated token's "
    "logits can move.",
    range=_SCORE,
    margin=0.15,
    needs=(Need.HOLE,),
    compute=lambda v: v.imacs(v.maps.r2g_centred.unified, v.region),
    without_each_step=lambda v: v.imacs_without_each(v.maps.r2g_centred.by_step, v.region),
    lines_of="imacs_g",
    of_further_references=True,
    watched_as="imacs-g",
)
IMACS_G_OBJECT_MASS = DeclaredFigure(
    tag="imacs_g_object_mass",
    title="IMACS_g, object mass",
    meaning="IMACS_g of each generated token's share of attention on the reference's object, or kept region, which such a "
    "shift can't move either.",
    range=_SCORE,
    needs=(Need.HOLE, Need.OBJECT, Need.SEVERAL_TOKENS),
    compute=lambda v: v.imacs(v.maps.r2g_object_mass.unified, v.region),
    without_each_step=lambda v: v.imacs_without_each(v.maps.r2g_object_mass.by_step, v.region),
    lines_of="imacs_g",
)
ENERGY_R_HOLE = DeclaredFigure(
    tag="energy_r_hole",
    title="energy on the object",
    meaning="Share of what the tokens of the hole, or kept region, draw on that lies on the object in the reference, or kept "
    "region; chance is its share of the picture.",
    unit="share of the map",
    range=_SHARE,
    needs=(Need.OBJECT, Need.SEVERAL_TOKENS),
    compute=lambda v: v.energy(v.maps.g2r_region.unified, v.reference_region),
    without_each_step=lambda v: v.energy_without_each(v.maps.g2r_region.by_step, v.reference_region),
    compute_of_layer=_layer_energy_r_hole,
)
IMACS_G_Z = DeclaredFigure(
    tag="imacs_g_z",
    title="IMACS_g above chance",
    meaning=f"IMACS_g in {_ABOVE_CHANCE}; comparable between masks of different size.",
    needs=(Need.HOLE,),
    compute=lambda v: v.imacs_z(v.maps.r2g.unified, v.region),
)
IMACS_R_Z = DeclaredFigure(
    tag="imacs_r_z",
    title="IMACS_r above chance",
    meaning=f"IMACS_r in {_ABOVE_CHANCE}.",
    needs=IMACS_R.needs,
    compute=lambda v: v.imacs_z(v.maps.g2r.unified, v.reference_region),
)
IMACS_R_HOLE_Z = DeclaredFigure(
    tag="imacs_r_hole_z",
    title="IMACS_r of the hole above chance",
    meaning=f"IMACS_r of the hole, or kept region, in {_ABOVE_CHANCE}.",
    needs=IMACS_R_HOLE.needs,
    compute=lambda v: v.imacs_z(v.maps.g2r_region.unified, v.reference_region),
)
KEPT_PLACE = DeclaredFigure(
    tag="kept_place",
    title="kept patches that look at their own place",
    meaning="Share of the kept patches that look most at their own place in the reference, within one patch, in the copying "
    "layer. It tells a misplaced reference (mirrored, shifted) from other faults and is no alarm: rotary positions keep it "
    "near 1 even when copying is destroyed.",
    unit="share of the patches",
    range=_SHARE,
    needs=(Need.KEPT, Need.SEVERAL_TOKENS),
    compute=lambda v: v.kept_place(),
    compute_of_layer=lambda v, layer: v.kept_place(layer),
    on_panel=True,
    tells_of_use=False,
)
JS_R2G = DeclaredFigure(
    tag="drift/js_r2g",
    title="JS distance of R2G to the baseline",
    meaning="Square root of the Jensen-Shannon divergence between this evaluation's R2G map and the baseline's.",
    range=_SHARE,
    worse="up",
    needs=(Need.BASELINE,),
    compute=lambda v: v.distance_to_baseline("r2g"),
    of_further_references=True,
    tells_of_use=False,
    in_log=True,
)
JS_G2R = DeclaredFigure(
    tag="drift/js_g2r",
    title="JS distance of G2R to the baseline",
    meaning="Square root of the Jensen-Shannon divergence between this evaluation's G2R map and the baseline's.",
    range=_SHARE,
    worse="up",
    needs=(Need.BASELINE, Need.SEVERAL_TOKENS),
    compute=lambda v: v.distance_to_baseline("g2r"),
    of_further_references=True,
    tells_of_use=False,
    in_log=True,
)

FIGURES: tuple[DeclaredFigure, ...] = (
    IMACS_G,
    IMACS_G_Z,
    IMACS_R,
    IMACS_R_Z,
    IMACS_R_HOLE,
    IMACS_R_HOLE_Z,
    COPYING_LAYER_IMACS_R_HOLE,
    IMACS_G_CENTRED,
    IMACS_G_OBJECT_MASS,
    ENERGY_R_HOLE,
    ATTENTION_INFORMATION,
    REFERENCE_GAP,
    BLANK_GAP,
    LOSS,
    LOSS_WRONG_REFERENCE,
    LOSS_INSIDE,
    LOSS_OUTSIDE,
    *PROBES,
    REFERENCE_MASS,
    EDITED_MASS,
    BRANCH_SHARE,
    KEPT_PLACE,
    JS_R2G,
    JS_G2R,
)
"""In the order in which they are stored, listed and judged."""
