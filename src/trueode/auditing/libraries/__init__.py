"""The libraries whose solves an audit can record and replace."""

from trueode.auditing.libraries import diffrax, torchdiffeq, torchdyn, torchode, trueode, zuko
from trueode.auditing.session import Library

LIBRARIES: tuple[Library, ...] = (
    trueode.LIBRARY,
    torchdiffeq.LIBRARY,
    torchdyn.LIBRARY,
    torchode.LIBRARY,
    zuko.LIBRARY,
    diffrax.LIBRARY,
)
