"""The files of a run: its directory, history, checkpoints and audit."""

from trueode.files import write_json, write_text
from trueode.runs.audits import read_audit
from trueode.runs.checkpoints import load_latest, read_checkpoint, save_checkpoint
from trueode.runs.directory import RunDirectory
from trueode.runs.history import History, cut_history, read_history

__all__ = [
    "History",
    "RunDirectory",
    "cut_history",
    "load_latest",
    "read_audit",
    "read_checkpoint",
    "read_history",
    "save_checkpoint",
    "write_json",
    "write_text",
]
