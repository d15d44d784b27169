"""Attack the reliability of trueode: kills, full disks, damaged files, hostile data and options.

No command may end with a traceback, hang, change a result or touch files outside its run. See
``python -m campaign --help`` and ``docs/campaign.md``.
"""
