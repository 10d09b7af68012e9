"""The temporal half of DFDNet: STAU attention, the DFDU that disentangles and filters, and the stages they form."""

from .dfdu import DFDU
from .filter import HardGate, ThresholdFilter
from .stau import STAU
from .temporal import DFDB, Branch, TemporalModule

__all__ = ["DFDB", "DFDU", "STAU", "Branch", "HardGate", "TemporalModule", "ThresholdFilter"]
