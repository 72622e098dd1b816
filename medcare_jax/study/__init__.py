"""What the orthogonality constraint buys: the same MKA gone on from under several constraints.

settings.py    a study: one run, its seeds, the cells that differ in how DA is done
facts.py       synthetic tasks that a tiny random model can learn and forget
drawn.py       tasks drawn for each seed from data in MedCareData's layout
runner.py      trains and scores each cell of each seed, once
measures.py    what is measured of a cell: scores, NLL, angles, effect on knowledge inputs
statistics.py  paired differences over seeds, with intervals
report.py      the table and the frontier, as Markdown and as a page
"""
