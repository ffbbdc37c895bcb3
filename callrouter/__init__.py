"""callrouter: answers a city's emergency number 112.

domain     the rules, pure: menu (ivr), what happened to a call (call), who calls (caller), tickets
profile    the city as data, and config: this machine's settings
asterisk   adapters to the switch: ARI, AMI, journal, mirrored SIP, configuration, prompts
store      all SQL
service    the use cases: intake (a caller in the menu), ledger (journal to tickets), upkeep, operators
web        API, health, metrics
phone      a small SIP phone, for test calls
daemon     the daemon's composition root; cli and commands: the command line
"""
