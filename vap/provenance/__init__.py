"""Where a number comes from: `vap explain`, which follows the records that artefacts carry.

In: a cell of a table, and the files it was made from. Out: the chain down to the raw files, with
what differs now.
"""
