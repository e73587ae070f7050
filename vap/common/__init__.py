"""What every room uses: artefacts and their records, errors, places of files, progress, weights, processes.

In: nothing of a room's. Out: Arrow and JSON files written whole or not at all (artifacts.py), the hashes of
code (code.py), where every artefact lies (places.py). It serves all stages, and imports no other room.
"""
