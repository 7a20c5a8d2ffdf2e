"""The command line `dstack`: what an owner, an auditor or an operator types on a laptop."""
