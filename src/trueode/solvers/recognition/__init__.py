"""Recognise fields that compute chains of layers, so that solvers can compute these faster.

Three things must be known of a field. Its code does nothing but compute (`code`): then it makes no
difference whether it is called. What it computes are layers (`tape`): it is called once, while all
functions of PyTorch are followed by `rules`. And its values and gradients are those of the layers
(`recogniser`). Where one of them is in doubt, solvers call the field.
"""

from trueode.solvers.recognition.code import Reading
from trueode.solvers.recognition.recogniser import Recognition, find_layers
from trueode.solvers.recognition.snapshot import Snapshot
from trueode.solvers.recognition.values import RecognitionError

__all__ = ["Reading", "Recognition", "RecognitionError", "Snapshot", "find_layers"]
