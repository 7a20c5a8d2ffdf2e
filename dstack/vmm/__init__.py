"""The host's side of a VM, as far as its measurement depends on it.

One `VmConfig` describes a machine. `qemu` turns it into a command line for a real host, and into the smaller one that
`qtest` starts on a laptop, from the same list of devices; so what an auditor measures is what the host starts.
"""
