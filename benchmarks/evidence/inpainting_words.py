"""The names, the question and the sentences of the part `inpainting`, made of what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from i2am_debug.figures.values import Undefined

from .over_trainings import Interval
from .section import with_interval
from .sizes import Sizes

ONE_TOKEN, NO_POSITIONS, REFINED = "one_token", "no_positions", "patch_tokens"
DESIGNS = {ONE_TOKEN: "one token", NO_POSITIONS: "no positions", REFINED: "patch tokens"}
STEPS = "global_step"
FIGURES = {
    "imacs_g": "IMACS_g",
    "imacs_g_authors": "IMACS_g by the authors' code",
    "imacs_g_centred": "centred IMACS_g",
    "imacs_g_object_mass": "IMACS_g of the object's mass",
    "imacs_r": "IMACS_r",
    "imacs_r_authors": "IMACS_r by the authors' code",
    "imacs_r_hole": "IMACS_r of the hole",
    "copying_layer": "the copying layer's IMACS_r",
    "energy_r_hole": "energy on the object",
    "attention_information": "attention information",
    "reference_gap": "reference gap",
    "blank_gap": "gap to no reference",
    "loss": "−loss",
}
IMACS = ("imacs_g", "imacs_r", "copying_layer")
CLAIMED = (*IMACS, "attention_information", "reference_gap", "loss")
"""Of whose correlations the words speak; the loss beside them, as what needs no look."""
_LOSSES = ("reference_gap", "blank_gap", "loss")
_STRONG = 0.5  # of a rank correlation whose interval lies above it

Found = Interval | Undefined


@dataclass(frozen=True, kw_only=True)
class Findings:
    ends: Mapping[str, Mapping[str, Found]]
    """Design → name of a quality or figure → mean over trainings at their end."""
    refined_minus: Mapping[str, Mapping[str, Found]]
    """Flawed design → the same of the differences."""
    rho: Mapping[str, Mapping[str, Mapping[str, Found]]]
    """Design → figure → way → rank correlation with quality."""
    chance: Mapping[str, float | Undefined]
    """Figure → the share of `over_trainings.share_by_chance` at equal steps, of the refined design."""
    both_ends: Mapping[str, Found]
    """Figure → rank correlation over the ends of the trainings of both designs with patch tokens."""
    spread: float
    """Between the best and the worst refined training at the end, dB."""


def asked(sizes: Sizes) -> str:
    return (
        "The paper debugs a custom model of its own by these maps: IMACS_g and IMACS_r, and the pictures, are better of its "
        "refined version. Here the tiny inpainting model is trained from scratch, "
        f"{len(sizes.trained_seeds)} seeds of {sizes.trained_steps} steps, with three reference encoders and all else alike: "
        "the shipped one (64 *patch tokens*: refined), one with all of them pooled into *one token*, as a CLIP's class token "
        "has it, and one with *no positions*. Two flaws, since one token leaves no map of the reference to look at, while the "
        "paper's custom model has an IMACS_r (0.0403, refined 0.0948): it had several tokens. "
        f"Each training is looked at {sizes.checkpoints} times on {sizes.pairs} held-out pairs, teacher forced, all heads, and "
        "pictures are sampled. IMACS_g and IMACS_r are the paper's, of all layers; the copying layer is the one of most "
        "attention information at that step, its IMACS_r that of the hole's queries; the "
        "authors' code scores R2G inverted.\n\n"
        "Rank correlations are Spearman's: over all checkpoints of all trainings; within each training, mean over them; "
        "between trainings at equal steps (a checkpoint is ranked among those of its step, all steps together); and between "
        "their ends. Over or within trainings whatever grows with time goes with quality, as the number of steps itself shows: "
        "only what is between trainings says that a figure knows of quality. Intervals are by resampling whole trainings, and "
        "rough of so few; *by chance* is exact: of all ways to give the trainings each other's figures, the share that does as "
        "well at equal steps."
    )


def in_words(found: Findings) -> str:
    return "\n\n".join([_flawed_and_refined(found), _with_quality(found), _verdict(found)])


def cell(found: Found, digits: int = 2) -> str:
    return str(found) if isinstance(found, Undefined) else with_interval(*found, digits=digits)


def digits_of(name: str) -> int:
    return 3 if name in _LOSSES else 2


def _flawed_and_refined(found: Findings) -> str:
    ends = "; ".join(
        f"{words} {cell(found.ends[design]['psnr_hole'], 1)} dB and an SSIM of {cell(found.ends[design]['ssim_hole'])}"
        for design, words in DESIGNS.items()
    )
    told = " ".join(_told(found, flawed) for flawed in found.refined_minus)
    return f"**Flawed and refined.** At the end, in the hole: {ends}. {told}"


def _told(found: Findings, flawed: str) -> str:
    """By which figures the refined model is told from a flawed one."""
    apart = found.refined_minus[flawed]

    def where(test: Callable[[Interval], bool]) -> list[str]:
        return [tag for tag, one in apart.items() if tag in FIGURES and isinstance(one, tuple) and test(one)]

    better, worse, alike = (
        where(test) for test in (lambda d: d[1] > 0, lambda d: d[2] < 0, lambda d: d[1] <= 0 <= d[2])
    )
    words = [f"told by {_values(found, flawed, better)}"]
    if worse:
        words.append(f"the wrong way round by {_values(found, flawed, worse)}")
    if "imacs_g" in alike:
        words.append(f"not told by {_values(found, flawed, ['imacs_g'])}")
    undefined = any(isinstance(apart[tag], Undefined) for tag in FIGURES)
    if others := [tag for tag in alike if tag != "imacs_g"]:
        words.append(f"nor by {_names(others) if undefined else 'any other'}")
    if undefined:
        words.append("all others are undefined")
    return f"Patch tokens are {cell(apart['psnr_hole'])} dB better than {DESIGNS[flawed]}; {'; '.join(words)}."


def _values(found: Findings, flawed: str, tags: Iterable[str]) -> str:
    """The figures with their values, flawed and refined."""

    def value(design: str, tag: str) -> str:
        end = found.ends[design][tag]
        return str(end) if isinstance(end, Undefined) else f"{end[0]:.{digits_of(tag)}f}"

    return _and([f"{FIGURES[tag]} ({value(flawed, tag)} against {value(REFINED, tag)})" for tag in tags])


def _with_quality(found: Findings) -> str:
    refined = found.rho[REFINED]

    def listed(tags: Iterable[str], way: str) -> str:
        return _and([f"{FIGURES[tag]} {cell(refined[tag][way])}" for tag in tags])

    strong = [tag for tag in CLAIMED if _above(refined[tag]["all"], _STRONG)]
    weak = [tag for tag in CLAIMED if tag not in strong]
    return (
        "**IMACS and quality.** The paper finds a strong correlation. Over all checkpoints of the refined design it is strong, "
        f"above {_STRONG} with its whole interval, of {listed(strong, 'all')}; not of {listed(weak, 'all')}. But the number of "
        f"steps alone gives {cell(refined[STEPS]['all'])}. At equal steps there are left {listed(CLAIMED, 'equal')}."
    )


def _verdict(found: Findings) -> str:
    knows = {tag: [d for d in (REFINED, NO_POSITIONS) if _above(found.rho[d][tag]["equal"], 0)] for tag in FIGURES}
    twice, once = ([tag for tag in FIGURES if len(knows[tag]) == times] for times in (2, 1))
    imacs = [tag for tag in IMACS if knows[tag]]
    claim = (
        f"At equal steps a correlation is left of {_names(imacs)}"
        if imacs
        else "Of IMACS, as in the paper or in the copying layer, it is not shown: at equal steps nothing is left that could be "
        "told from chance"
    )
    overall = {tag: found.rho[REFINED][tag]["all"] for tag in FIGURES}
    grow = [tag for tag in IMACS if _above(overall[tag], 0)]
    falls = [tag for tag, rho in overall.items() if isinstance(rho, tuple) and rho[2] < 0]
    sentences = [f"**The paper's claim.** {claim}."]
    if grow:
        sentences.append(f"Up with training, as is whatever it moves: {_names(grow)}.")
    if flat := [tag for tag in IMACS if tag not in grow]:
        sentences.append(f"Not even that is shown of {_names(flat)}.")
    if falls:
        sentences.append(f"Down, though the model gets better: {_names(falls)}.")
    return " ".join(
        [
            *sentences,
            "What knows of quality at equal steps (the interval lies above 0): in both designs of many tokens "
            f"{_names(twice)}; in one of them {_names(once)}; no other. Over the ends of both together: "
            f"{_names(tag for tag in FIGURES if _above(found.both_ends[tag], 0))}.",
            f"Not shown is not refuted: the refined trainings end within {found.spread:.1f} dB of each other, and so few show "
            "large correlations only. Where faults make quality differ by more: *Which figure to trust*.",
        ]
    )


def _above(found: Found, least: float) -> bool:
    return isinstance(found, tuple) and found[1] > least


def _names(tags: Iterable[str]) -> str:
    return _and([FIGURES[tag] for tag in tags])


def _and(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words) or "none"
