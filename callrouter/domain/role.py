"""Who may do what: the roles of tokens and of people."""

ROLES = ("call_taker", "supervisor", "agency", "admin", "auditor")
READS_ALL_TICKETS = frozenset(ROLES) - {"agency"}  # an agency sees what was sent to it, and nothing was yet
