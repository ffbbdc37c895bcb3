"""callrouter: answers a city's emergency number 112."""
