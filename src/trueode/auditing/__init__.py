"""Is this model an ODE? Audits of any model, with evidence."""

from trueode.auditing.auditor import audit, check_solver, judge
from trueode.auditing.report import Audit

__all__ = ["Audit", "audit", "check_solver", "judge"]
