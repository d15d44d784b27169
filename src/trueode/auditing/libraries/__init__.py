"""The libraries whose solves can be seen and replaced."""

from trueode.auditing.interception import Library
from trueode.auditing.libraries import torchdiffeq, torchdyn, torchode, trueode

LIBRARIES: tuple[Library, ...] = (trueode.LIBRARY, torchdiffeq.LIBRARY, torchdyn.LIBRARY, torchode.LIBRARY)
