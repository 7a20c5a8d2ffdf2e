"""Golden data through our public functions.

A `Computation` names the members of a case that its function may see, and the function returns values by the names of
the members that should equal them. So no expected value can influence a computed one. `cases` reads files, `compare`
runs and compares, `kms`, `guest` and `guest_keys` hold the computations of their kinds, `report` tells what came of it.
"""
