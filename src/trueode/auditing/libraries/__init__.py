"""The libraries whose solves can be seen and replaced."""

from trueode.auditing.libraries import torchdiffeq, torchdyn, torchode, trueode
from trueode.auditing.session import Library

LIBRARIES: tuple[Library, ...] = (
    trueode.LIBRARY,
    torchdiffeq.LIBRARY,
    torchdyn.LIBRARY,
    torchode.LIBRARY,
)
