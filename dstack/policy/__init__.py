"""Does the chain permit it? Pure: no network, no clock.

In: an `Appraisal`, or a contract's answer. Out: the `BootInfo` that the contracts judge, and a `Decision`.
"""

from dstack.policy.boot_info import BootInfo, boot_info
from dstack.policy.decision import BlockRef, Decision, Denied, Granted, Rule, decide

__all__ = ["BlockRef", "BootInfo", "Decision", "Denied", "Granted", "Rule", "boot_info", "decide"]
