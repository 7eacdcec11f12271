"""Published figures of some accelerators, for what an evaluation would take on one that is not here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

UTILISATION = 0.4
"""Share of the published throughput that is taken to be reached: an assumption, too high for small models and pictures."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One accelerator, by its maker's data sheet."""

    name: str
    teraflops: float
    """Dense matrix products in half precision (bfloat16 where it has that), summed in float32; 10^12 operations a second."""
    gibibytes: int
    """Memory."""

    def seconds(self, operations: float) -> float:
        """What so many operations take at `UTILISATION`; a multiplication and an addition are two."""
        return operations / (self.teraflops * 1e12 * UTILISATION)


# From NVIDIA's data sheets (A10, A100, B200 in a DGX, H100, H200, L4, L40S, T4, V100) and architecture papers (GeForce).
# Where these name a figure "with sparsity", half of it. The larger ones are those of the SXM boards.
_CARDS = (
    Card(name="A10", teraflops=125, gibibytes=24),
    Card(name="A100", teraflops=312, gibibytes=80),
    Card(name="B200", teraflops=2250, gibibytes=180),
    Card(name="H100", teraflops=989, gibibytes=80),
    Card(name="H100-PCIe", teraflops=756, gibibytes=80),
    Card(name="H200", teraflops=989, gibibytes=141),
    Card(name="L4", teraflops=121, gibibytes=24),
    Card(name="L40S", teraflops=362, gibibytes=48),
    Card(name="RTX3090", teraflops=71, gibibytes=24),
    Card(name="RTX4090", teraflops=165, gibibytes=24),
    Card(name="RTX5090", teraflops=209, gibibytes=32),
    Card(name="T4", teraflops=65, gibibytes=16),
    Card(name="V100", teraflops=125, gibibytes=32),
)
CARDS = {card.name: card for card in _CARDS}


def card_named(name: str) -> Card:
    """The card of that name, whatever its case, spaces and hyphens.

    Raises:
        ValueError: there is none; names those there are.
    """
    wanted = _plain(name)
    found = next((card for card in _CARDS if _plain(card.name) == wanted), None)
    if found is None:
        raise ValueError(f"no figures of a device {name!r}; there are {', '.join(CARDS)}")
    return found


def _plain(name: str) -> str:
    plain = "".join(c for c in name.lower() if c.isalnum())
    return plain.removeprefix("nvidia").removeprefix("geforce")
