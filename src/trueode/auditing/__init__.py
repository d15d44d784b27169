"""Is this model an ODE? The audit of any model, with evidence."""

from trueode.auditing.auditor import audit
from trueode.auditing.loops import SolverReport, check_solver
from trueode.auditing.report import Audit

__all__ = ["Audit", "SolverReport", "audit", "check_solver"]
