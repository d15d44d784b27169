"""Attacks on the reliability of trueode: kills, full disks, tampered files, hostile data and
options; see ``docs/campaign.md``.

Nothing may end with a traceback, hang, change a result or touch what is not its own.
``python -m campaign --help``.
"""
