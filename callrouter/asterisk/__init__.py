"""Adapters to the switch: ARI, AMI, the CEL journal, HEP, and the configuration rendered for it."""
