"""A small SIP phone over UDP: it calls 112 for `callrouter call test`, and is caller and operator in the tests.

It speaks A-law only, answers what Asterisk asks (OPTIONS, NOTIFY, re-INVITE), and keeps what it heard with the times.
"""

from callrouter.phone.dialog import Dialog
from callrouter.phone.operator import answers, declines, lets_ring
from callrouter.phone.phone import Phone
from callrouter.phone.transaction import SipError

__all__ = ["Dialog", "Phone", "SipError", "answers", "declines", "lets_ring"]
